"""SDXL and SDXL-Turbo: the Linears of the transformer blocks; convolutions and text projections stay in 16 bits.

Source: nunchaku's unet_sdxl.py and diffusers' UNet2DConditionModel; the places in ComfyUI's UNet follow from how both
count resnets and attentions, as comfy.utils.unet_to_diffusers writes down.
"""

from torch import Tensor

from .architecture import Architecture, LoraNames, Published
from .layer_maps import BlockMap, LinearMap, thirds

CHANNELS = (320, 640, 1280)
DEPTHS = (0, 2, 10)  # transformer blocks in an attention of each level
RESNETS = 2  # of a level on the way down; one more on the way up

_FUSED = ("attn1.to_qkv",)
_QKV = tuple(
    LinearMap(f"attn1.to_{name}", _FUSED, piece=index, split=thirds, bias=False) for index, name in enumerate("qkv")
)
_LINEARS = (
    *_QKV,
    LinearMap("attn1.to_out.0", ("attn1.to_out.0",)),
    LinearMap("attn2.to_q", ("attn2.to_q",), bias=False),
    LinearMap("attn2.to_out.0", ("attn2.to_out.0",)),
    LinearMap("ff.net.0.proj", ("ff.net.0.proj",), shape=(8, 1)),
    LinearMap("ff.net.2", ("ff.net.2",), shape=(1, 4)),
)
_PLAIN = {f"norm{n}.{end}": (f"norm{n}.{end}",) for n in (1, 2, 3) for end in ("weight", "bias")}
_PLAIN |= {f"attn2.to_{name}.weight": (f"attn2.to_{name}.weight",) for name in "kv"}
_SHAPES = {name: ("H",) for name in _PLAIN if name.startswith("norm")}
_SHAPES |= {f"attn2.to_{name}.weight": ("H", "*") for name in "kv"}

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def _attentions() -> dict[str, tuple[str, int]]:
    """ComfyUI's name of each attention -> diffusers' name, and its transformer blocks."""
    levels, found = len(CHANNELS), {}
    for level in range(levels):
        for n in range(RESNETS):
            place = 1 + (RESNETS + 1) * level + n
            found[f"input_blocks.{place}.1"] = f"down_blocks.{level}.attentions.{n}", DEPTHS[level]
    found["middle_block.1"] = "mid_block.attentions.0", DEPTHS[-1]
    for level in range(levels):
        for n in range(RESNETS + 1):
            place = (RESNETS + 1) * level + n
            found[f"output_blocks.{place}.1"] = f"up_blocks.{level}.attentions.{n}", DEPTHS[levels - 1 - level]
    return {host: (source, depth) for host, (source, depth) in found.items() if depth}


def _modules() -> dict[str, str]:
    """ComfyUI's name of everything outside the transformer blocks -> diffusers' name."""
    levels = len(CHANNELS)
    found = {
        "input_blocks.0.0": "conv_in",
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb.0.0": "add_embedding.linear_1",
        "label_emb.0.2": "add_embedding.linear_2",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    resnets = {"middle_block.0": "mid_block.resnets.0", "middle_block.2": "mid_block.resnets.1"}
    for level in range(levels):
        for n in range(RESNETS):
            resnets[f"input_blocks.{1 + (RESNETS + 1) * level + n}.0"] = f"down_blocks.{level}.resnets.{n}"
        for n in range(RESNETS + 1):
            resnets[f"output_blocks.{(RESNETS + 1) * level + n}.0"] = f"up_blocks.{level}.resnets.{n}"
        if level < levels - 1:
            place = (RESNETS + 1) * (level + 1)
            found[f"input_blocks.{place}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            after = 1 + (DEPTHS[levels - 1 - level] > 0)
            found[f"output_blocks.{place - 1}.{after}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    found |= {f"{host}.{h}": f"{source}.{s}" for host, source in resnets.items() for h, s in _RESNET.items()}
    for host, (source, _) in _attentions().items():
        found |= {f"{host}.{name}": f"{source}.{name}" for name in ("norm", "proj_in", "proj_out")}
    return found


def _metadata(plain: dict[str, Tensor], depths: dict[str, int]) -> dict:
    diffusers = {
        "_class_name": "UNet2DConditionModel",
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": list(CHANNELS),
        "cross_attention_dim": plain["input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "in_channels": plain["input_blocks.0.0.weight"].shape[1],
        "layers_per_block": RESNETS,
        "out_channels": plain["out.2.weight"].shape[0],
        "projection_class_embeddings_input_dim": plain["label_emb.0.0.weight"].shape[1],
        "sample_size": 128,
        "transformer_layers_per_block": [1, *DEPTHS[1:]],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    }
    return {"config": diffusers, "model_class": "NunchakuSDXLUNet2DConditionModel"}


_WIDTHS = {f"{host}.transformer_blocks": CHANNELS[DEPTHS.index(depth)] for host, (_, depth) in _attentions().items()}
_COUNTS = {f"{host}.transformer_blocks": depth for host, (_, depth) in _attentions().items()}

SDXL = Architecture(
    name="sdxl",
    title="SDXL",
    source_marks=("^down_blocks.", "^add_embedding."),
    host_marks=("^label_emb.0.0.",),
    metadata=_metadata,
    lora=LoraNames(
        marks=("down_blocks.", "up_blocks.", "input_blocks.", "output_blocks.", "middle_block."),
        called="Stable Diffusion or SDXL",
    ),
    published=tuple(
        Published(name, 1280, _COUNTS, 723_348_484, precisions=("int4",), widths=_WIDTHS)
        for name in ("sdxl", "sdxl-turbo")
    ),
    blocks=tuple(
        BlockMap(
            host=f"{host}.transformer_blocks",
            source=f"{source}.transformer_blocks",
            linears=_LINEARS,
            plain=_PLAIN,
            plain_shapes=_SHAPES,
            modules={linear.host: ((linear.host,), _FUSED) for linear in _QKV},
        )
        for host, (source, _) in _attentions().items()
    ),
    modules=_modules(),
    optional=frozenset(host for host in _modules() if host.endswith(".skip_connection")),  # where channels change
    older_suffixes=True,
)
