"""Qwen-Image, -2512, -Edit, -Edit-2509, -Edit-2511, Lightning, Layered.

Source: nunchaku's transformer_qwenimage.py and diffusers' QwenImageTransformer2DModel; ComfyUI's comfy/ldm/qwen_image.
Proven on a file of deepcompressor's converter. That some files have their modulation as W4A4 layers, with rows in plain
order and without the 1, is told by their publisher and was not seen.
"""

import torch
from torch import Tensor

from .architecture import Architecture, LoraNames, Published
from .layer_maps import BlockMap, LinearMap, thirds

_FUSED, _ADDED = ("attn.to_qkv",), ("attn.add_qkv_proj",)
_MODULES = ("img_in", "txt_in", "norm_out.linear", "proj_out")
_TIME = tuple(f"time_text_embed.timestep_embedder.linear_{n}" for n in (1, 2))
TIMESTEP_ZERO = "__index_timestep_zero__"  # an empty tensor: ComfyUI then takes the references of Edit-2511


def _piece(host: str, source: tuple[str, ...], index: int) -> LinearMap:
    return LinearMap(host, source, piece=index, split=thirds)


def _stream(name: str) -> tuple[LinearMap, ...]:
    return (
        LinearMap(f"{name}_mlp.net.0.proj", (f"{name}_mlp.net.0.proj",), shape=(4, 1)),
        LinearMap(f"{name}_mlp.net.2", (f"{name}_mlp.net.2",), unsigned=(0,), shape=(1, 4)),
    )


def _modulation(name: str) -> LinearMap:
    return LinearMap(f"{name}_mod.1", (f"{name}_mod.1",), modulation_chunks=6, shape=(6, 1))


_ATTENTION = tuple(_piece(f"attn.to_{n}", _FUSED, i) for i, n in enumerate("qkv"))
_ATTENTION += tuple(_piece(f"attn.add_{n}_proj", _ADDED, i) for i, n in enumerate("qkv"))
_NORMS = tuple(f"attn.norm_{name}.weight" for name in ("q", "k", "added_q", "added_k"))

BLOCK = BlockMap(
    host="transformer_blocks",
    source="transformer_blocks",
    linears=(
        _modulation("img"),
        _modulation("txt"),
        *_ATTENTION,
        LinearMap("attn.to_out.0", ("attn.to_out.0",)),
        LinearMap("attn.to_add_out", ("attn.to_add_out",)),
        *_stream("img"),
        *_stream("txt"),
    ),
    plain={name: (name,) for name in _NORMS},
    plain_shapes=dict.fromkeys(_NORMS, ("D",)),
    config_key="num_layers",
    modules={linear.host: ((linear.host,), linear.sources) for linear in _ATTENTION},
)


def _metadata(plain: dict[str, Tensor], depths: dict[str, int]) -> dict:
    width, channels = plain["img_in.weight"].shape
    head = plain["transformer_blocks.0.attn.norm_q.weight"].shape[0]
    diffusers = {
        "_class_name": "QwenImageTransformer2DModel",
        "attention_head_dim": head,
        "axes_dims_rope": [16, 56, 56],
        "guidance_embeds": False,
        "in_channels": channels,
        "joint_attention_dim": plain["txt_in.weight"].shape[1],
        "num_attention_heads": width // head,
        "num_layers": depths["transformer_blocks"],
        "out_channels": plain["proj_out.weight"].shape[0] // 4,
        "patch_size": 2,
        "pooled_projection_dim": 768,
    }
    diffusers |= {"zero_cond_t": True} if TIMESTEP_ZERO in plain else {}
    return {"config": diffusers, "model_class": "NunchakuQwenImageTransformer2DModel"}


def _extras(file: str, config: dict) -> dict[str, Tensor]:
    """What tells ComfyUI that a model is Edit-2511: diffusers' config, and where that is silent, the file name."""
    newest = config.get("zero_cond_t", "2511" in file)
    return {TIMESTEP_ZERO: torch.empty(0)} if newest else {}


_NAMES = (
    ("qwen-image", (32, 128)),
    ("qwen-image-lightningv1.0-4steps", (32, 128)),
    ("qwen-image-lightningv1.1-8steps", (32, 128)),
    ("qwen-image-edit", (32, 128)),
    ("qwen-image-edit-lightningv1.0-4steps", (32, 128)),
    ("qwen-image-edit-lightningv1.0-8steps", (32, 128)),
    ("qwen-image-edit-2509", (32, 128)),
    ("qwen-image-edit-2509-lightningv2.0-4steps", (32, 128)),
    ("qwen-image-edit-2509-lightningv2.0-8steps", (32, 128)),
)

QWEN_IMAGE = Architecture(
    name="qwen_image",
    title="Qwen-Image",
    covers="Qwen-Image (2512, Edit, 2509, 2511, Layered)",
    source_marks=("^transformer_blocks.0.img_mod.1.", "^transformer_blocks.0.txt_mod.1."),
    host_marks=("^transformer_blocks.0.img_mod.1.", "^transformer_blocks.0.txt_mod.1."),
    metadata=_metadata,
    extras=_extras,
    lora=LoraNames(marks=(".img_mod.1", ".txt_mod.1", "blocks.0.img_mlp.net.", "blocks.0.txt_mlp.net.")),
    published=tuple(
        Published(name, 3072, {"transformer_blocks": 60}, 40_000_000, ranks=ranks) for name, ranks in _NAMES
    ),
    blocks=(BLOCK,),
    modules={name: name for name in (*_MODULES, *_TIME)},
    tensors={name: name for name in ("txt_norm.weight", "time_text_embed.addition_t_embedding.weight", TIMESTEP_ZERO)},
    optional=frozenset({"time_text_embed.addition_t_embedding", TIMESTEP_ZERO}),  # Layered; Edit-2511
    shapes={
        "img_in.weight": ("H", "*"),
        "txt_in.weight": ("H", "*"),
        "norm_out.linear.weight": ("2H", "H"),
        "proj_out.weight": ("*", "H"),
        "txt_norm.weight": ("*",),
    },
)
