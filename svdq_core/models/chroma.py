"""Chroma: the blocks of FLUX.1 without modulation layers, whose work one small network does for all of them.

Two publishers use the same names of layers and differ in two ways: the norms of q and k, and whether activations behind
a GELU are unsigned in INT4 files. So a norm's name says how a file is to be read; where the layers have nunchaku's
newer names, a norm's newer name says nothing.
Source: spooknik's nunchaku-chroma, and nunchaku's transformer_chroma.py as tonera keeps it; ComfyUI's comfy/ldm/chroma.
"""

from dataclasses import replace

from torch import Tensor

from .architecture import Architecture, LoraNames, Published
from .flux import DOUBLE_BLOCK, SINGLE_BLOCK
from .layer_maps import BlockMap

_MODULATIONS = ("img_mod.lin", "txt_mod.lin", "modulation.lin")


def _without_modulation(block: BlockMap) -> BlockMap:
    linears = tuple(linear for linear in block.linears if linear.host not in _MODULATIONS)
    return replace(block, linears=linears, native={})


def _as_tonera(block: BlockMap) -> BlockMap:
    """Norms lie below attn, and all activations are signed."""
    linears = tuple(replace(linear, unsigned=()) for linear in block.linears)
    plain = {host: tuple(f"attn.{source}" for source in block.plain_map(host).sources) for host in block.plain}
    return replace(block, linears=linears, plain=plain, newer={})


_GUIDANCE = BlockMap(
    host="distilled_guidance_layer.layers",
    source="distilled_guidance_layer.layers",
    linears=(),
    plain={
        f"{host}.{end}": (f"{source}.{end}",)
        for host, source in (("in_layer", "linear_1"), ("out_layer", "linear_2"))
        for end in ("weight", "bias")
    },
)
_GUIDANCE_NORMS = BlockMap(
    host="distilled_guidance_layer.norms",
    source="distilled_guidance_layer.norms",
    linears=(),
    plain={"weight": ("weight",)},
)
_BLOCKS = (_without_modulation(DOUBLE_BLOCK), _without_modulation(SINGLE_BLOCK))


def _metadata(plain: dict[str, Tensor], depths: dict[str, int]) -> dict:
    width, channels = plain["img_in.weight"].shape
    head = plain["double_blocks.0.img_attn.norm.query_norm.weight"].shape[0]
    hidden, guidance_channels = plain["distilled_guidance_layer.in_proj.weight"].shape
    diffusers = {
        "_class_name": "ChromaTransformer2DModel",
        "approximator_hidden_dim": hidden,
        "approximator_layers": depths["distilled_guidance_layer.layers"],
        "approximator_num_channels": guidance_channels,
        "attention_head_dim": head,
        "axes_dims_rope": [16, 56, 56],
        "in_channels": channels,
        "joint_attention_dim": plain["txt_in.weight"].shape[1],
        "num_attention_heads": width // head,
        "num_layers": depths["double_blocks"],
        "num_single_layers": depths["single_blocks"],
        "out_channels": None,
        "patch_size": 1,
    }
    return {"config": diffusers, "model_class": "NunchakuChromaTransformer2dModel"}


_COUNTS = {
    "double_blocks": 19,
    "single_blocks": 38,
    "distilled_guidance_layer.layers": 5,
    "distilled_guidance_layer.norms": 5,
}
_NAME_MARKS = ("^distilled_guidance_layer.",)

_SHARED = Architecture(
    name="chroma",
    title="Chroma",
    asked=-1,  # its files have names of FLUX.1, too
    source_marks=_NAME_MARKS,
    host_marks=_NAME_MARKS,
    metadata=_metadata,
    lora=LoraNames(marks=("distilled_guidance_layer.",)),
    published=tuple(Published(name, 3072, _COUNTS, 291_287_104) for name in ("Chroma1-HD", "Chroma-HD")),
    blocks=(*_BLOCKS, _GUIDANCE, _GUIDANCE_NORMS),
    modules={
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "distilled_guidance_layer.in_proj": "distilled_guidance_layer.in_proj",
        "distilled_guidance_layer.out_proj": "distilled_guidance_layer.out_proj",
        "final_layer.linear": "proj_out",
    },
    shapes={
        "img_in.weight": ("H", "*"),
        "txt_in.weight": ("H", "*"),
        "distilled_guidance_layer.out_proj.weight": ("H", "*"),
        "final_layer.linear.weight": ("*", "H"),
    },
    older_tensors={".weight": ".scale"},
    older_suffixes=True,
    behind_gelu={"img_mlp.2": (0,), "txt_mlp.2": (0,), "linear2": (1,)},
)

CHROMA_SIGNED = replace(
    _SHARED,
    source_marks=("^transformer_blocks.0.attn.norm_q. & ^transformer_blocks.0.qkv_proj.",),
    blocks=(*map(_as_tonera, _BLOCKS), _GUIDANCE, _GUIDANCE_NORMS),
)
CHROMA = replace(_SHARED, variants=(CHROMA_SIGNED,))
