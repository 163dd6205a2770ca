"""MiniMax H3 (FL2VA, Ref2VA): files hold the quantized layers only, the rest comes from a second file.

The row halves of mlp.fc1 are [value; gate] in every file in nunchaku's layout and [gate; value] in ComfyUI.
Source: the converter and loader of h3-consumer-bench, diffusers' conversion script, vLLM-Omni's converter, which reads
the published file whose names are like ComfyUI's; ComfyUI's comfy/ldm/minimax. How diffusers names what is not
quantized was not seen.
"""

from dataclasses import replace

from torch import Tensor

from .architecture import Architecture, LoraNames, Published
from .layer_maps import BlockMap, LinearMap, thirds

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")

_LINEARS = (
    LinearMap("attn.qkv_proj", QKV, split=thirds, shape=(None, 1), bias=False, alike=True),
    LinearMap("attn.out_proj", ("attn.to_out.0",), shape=(1, None), bias=False),
    LinearMap("mlp.fc1", ("ff.net.0.proj",), shape=(None, 1), swapped=True, bias=False),
    LinearMap("mlp.fc2", ("ff.net.2",), shape=(1, None), bias=False),
)
_MODULATION = LinearMap("adaln_proj.linear", ("adaln_proj.linear",), shape=(None, None))
_PLAIN = {
    "norm1.weight": ("norm1.weight",),
    "norm2.weight": ("norm2.weight",),
    "attn.q_norm.weight": ("attn.norm_q.weight",),
    "attn.k_norm.weight": ("attn.norm_k.weight",),
}
_SHAPES = {"norm1.weight": ("H",), "norm2.weight": ("H",)}
_MODULES = (
    *("video_patch_proj", "audio_patch_proj", "condition_proj", "time_embedder.proj_in", "time_embedder.proj_out"),
    *("final_layer.adaln_proj.linear", "final_layer.video_out", "final_layer.audio_out"),
)
_TENSORS = ("rope.inv_freq", "token_refiner.final_norm.weight", "final_layer.norm.weight", "adaln_t_table")


def _metadata(plain: dict[str, Tensor], depths: dict[str, int]) -> dict:
    width = plain["video_patch_proj.weight"].shape[0]
    diffusers = {
        "_class_name": "MiniMaxH3Transformer3DModel",
        "attention_head_dim": plain["blocks.0.attn.q_norm.weight"].shape[0],
        "hidden_size": width,
        "num_layers": depths["blocks"],
        "num_refiner_layers": depths["token_refiner.blocks"],
    }
    return {"config": diffusers}


MINIMAX_H3 = Architecture(
    name="minimax_h3",
    title="MiniMax H3",
    source_marks=(
        *("^transformer_blocks.0.adaln_proj.", "^transformer_blocks.0.attn.to_q.qweight"),
        *("^token_refiner.", "^blocks.0.attn.qkv_proj."),
    ),
    host_marks=("^blocks.0.attn.qkv_proj.", "^token_refiner.blocks."),
    metadata=_metadata,
    lora=LoraNames(diffusers=False),
    published=(
        Published(
            "minimax-h3-fl2va",
            5376,
            {"blocks": 50, "token_refiner.blocks": 2},
            29699616,
            shapes={
                "attn.qkv_proj": (21504, 5376),
                "attn.out_proj": (5376, 7168),
                "mlp.fc1": (28672, 5376),
                "mlp.fc2": (5376, 14336),
                "adaln_proj.linear": (96768, 16),  # of the pruned form
            },
        ),
    ),
    blocks=(
        BlockMap("token_refiner.blocks", "token_refiner.refiner_blocks", _LINEARS, _PLAIN, _SHAPES, modules={}),
        BlockMap("blocks", "transformer_blocks", (*_LINEARS, _MODULATION), _PLAIN, _SHAPES, "num_layers"),
    ),
    modules={name: name for name in _MODULES},
    tensors={name: name for name in _TENSORS},
    optional=frozenset({"time_embedder", "adaln_t_table", "rope.inv_freq"}),  # the pruned form has a table of curves
    older_suffixes=True,
    kept=("*.adaln_proj.linear", "token_refiner.*"),
    base_file="a 16-bit MiniMax H3 file of the same model (for minimax-h3-fl2va: minimax_h3_fl2va_bf16.safetensors, or "
    "its pruned form minimax_h3_fl2va_pruned_bf16.safetensors)",
)


def _host_named(swapped: bool) -> Architecture:
    """Layers called as in ComfyUI: the published fp4 file (halves swapped), and vLLM-Omni (not)."""
    blocks = []
    for block in MINIMAX_H3.blocks:
        linears = tuple(
            replace(linear, sources=(linear.host,), split=None, swapped=linear.swapped and swapped, alike=False)
            for linear in block.linears
        )
        blocks.append(replace(block, source=block.host, linears=linears, plain={name: (name,) for name in block.plain}))
    return replace(
        MINIMAX_H3, blocks=tuple(blocks), source_marks=("^blocks.0.attn.qkv_proj.",), older_suffixes=False, variants=()
    )


H3_AS_COMFYUI, H3_VLLM = _host_named(swapped=True), _host_named(swapped=False)
MINIMAX_H3 = replace(MINIMAX_H3, variants=(H3_AS_COMFYUI,), row_major=H3_VLLM)
