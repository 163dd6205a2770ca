"""MiniMax H3 (FL2VA, Ref2VA): some files hold the quantized layers only, and the rest comes from a second file.

The row halves of mlp.fc1 are [value; gate] in every file in nunchaku's layout and [gate; value] in ComfyUI.
diffuse-compressor calls quantized layers as ComfyUI does and leaves the rest under diffusers' names, so its files are
complete but for the frequencies of the positions, which follow from the config.
Source: the converter and loader of h3-consumer-bench, diffusers' conversion script, diffuse-compressor's recipe and
exporter, vLLM-Omni's converter, which reads a file of it; ComfyUI's comfy/ldm/minimax.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
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
_MODULATION = LinearMap("adaln_proj.linear", ("adaln_proj.linear",), modulation_chunks=1, shape=(None, None))
_PLAIN = {
    "norm1.weight": ("norm1.weight",),
    "norm2.weight": ("norm2.weight",),
    "attn.q_norm.weight": ("attn.norm_q.weight",),
    "attn.k_norm.weight": ("attn.norm_k.weight",),
}
_SHAPES = {"norm1.weight": ("H",), "norm2.weight": ("H",), "attn.q_norm.weight": ("D",), "attn.k_norm.weight": ("D",)}
# what is called otherwise outside the blocks
_MODULES = {
    "video_patch_proj": "proj_in",
    "audio_patch_proj": "audio_proj_in",
    "condition_proj": "context_embedder",
    "time_embedder.proj_in": "time_embedder.linear_1",
    "time_embedder.proj_out": "time_embedder.linear_2",
    "final_layer.adaln_proj.linear": "norm_out.linear",
    "final_layer.video_out": "proj_out",
    "final_layer.audio_out": "audio_proj_out",
}
FREQUENCIES, CURVES = "rope.inv_freq", "adaln_t_table"
_TENSORS = {
    FREQUENCIES: FREQUENCIES,
    "token_refiner.final_norm.weight": "token_refiner.final_norm.weight",
    "final_layer.norm.weight": "norm_out.norm.weight",
    CURVES: CURVES,
}
MOST_FREQUENCIES = 4096
ROPE_SIZE, ROPE_THETA = 16, 10000.0  # of both published models, where a file has no config


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


def _extras(file: str, config: dict) -> dict[str, Tensor]:
    """The frequencies of the positions, which diffusers works out and does not store."""
    size, theta = config.get("rope_freq_dim"), config.get("rope_theta")
    size = size if isinstance(size, int) and 0 < size <= MOST_FREQUENCIES else ROPE_SIZE
    theta = float(theta) if isinstance(theta, int | float) and theta > 0 else ROPE_THETA
    steps = torch.arange(0, 2 * size, 2, dtype=torch.float32) / (2 * size)
    return {FREQUENCIES: 1.0 / theta**steps}


MINIMAX_H3 = Architecture(
    name="minimax_h3",
    title="MiniMax H3",
    asked=1,  # its marks are names that other families share
    source_marks=(
        *("^transformer_blocks.0.adaln_proj.", "^transformer_blocks.0.attn.to_q.qweight"),
        *("^token_refiner.", "^blocks.0.attn.qkv_proj."),
    ),
    host_marks=("^blocks.0.attn.qkv_proj.", "^token_refiner.blocks."),
    metadata=_metadata,
    lora=LoraNames(diffusers=False, marks=(".adaln_proj.", "blocks.0.attn.qkv_proj")),
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
            layers_only=("int4",),
        ),
    ),
    blocks=(
        BlockMap("token_refiner.blocks", "token_refiner.refiner_blocks", _LINEARS, _PLAIN, _SHAPES, modules={}),
        BlockMap("blocks", "transformer_blocks", (*_LINEARS, _MODULATION), _PLAIN, _SHAPES, "num_layers"),
    ),
    modules=_MODULES,
    tensors=_TENSORS,
    extras=_extras,
    optional=frozenset({"time_embedder", CURVES, FREQUENCIES}),  # the pruned form has a table of curves
    older_suffixes=True,
    kept=("token_refiner.*",),
    members=(("fl2va",), ("ref2va", "ref2v", "r2va")),
    base_file="a 16-bit MiniMax H3 file of the same model (for minimax-h3-fl2va: minimax_h3_fl2va_bf16.safetensors, or "
    "its pruned form minimax_h3_fl2va_pruned_bf16.safetensors)",
)


def _host_named(swapped: bool, plain_source: Callable[[BlockMap], str]) -> Architecture:
    """Layers called as in ComfyUI.

    Args:
        swapped: the row halves of mlp.fc1 stand in the other order.
        plain_source: prefix of what is not quantized in a block.
    """
    blocks = []
    for block in MINIMAX_H3.blocks:
        linears = tuple(
            replace(linear, sources=(linear.host,), split=None, swapped=linear.swapped and swapped, alike=False)
            for linear in block.linears
        )
        prefix = plain_source(block)
        plain = {name: (name,) for name in block.plain} if prefix == block.host else block.plain
        modules = {} if prefix == block.host else {linear.host: (linear.sources,) for linear in block.linears}
        blocks.append(
            replace(block, source=block.host, linears=linears, plain=plain, plain_source=prefix, modules=modules)
        )
    return replace(
        MINIMAX_H3, blocks=tuple(blocks), source_marks=("^blocks.0.attn.qkv_proj.",), older_suffixes=False, variants=()
    )


H3_AS_COMFYUI = _host_named(True, lambda block: block.source)
H3_VLLM = replace(
    _host_named(False, lambda block: block.host),
    modules={name: name for name in _MODULES},
    tensors={name: name for name in _TENSORS},
)
MINIMAX_H3 = replace(MINIMAX_H3, variants=(H3_AS_COMFYUI,), row_major=H3_VLLM)
