"""FLUX.2 Klein (4B, 9B) and dev.

Source: nunchaku's transformer_flux2.py as its publisher keeps it, nunchaku_lite's adapter, diffusers'
Flux2Transformer2DModel; ComfyUI's comfy/ldm/flux. No layer has a bias, and no activation is unsigned.
"""

from torch import Tensor

from .architecture import Architecture, LoraNames, Published
from .layer_maps import BlockMap, LinearMap

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")


def _stream(host: str, attention: str, out: str, mlp: str) -> tuple[LinearMap, ...]:
    return (
        LinearMap(f"{host}_attn.qkv", (attention,), shape=(3, 1), bias=False),
        LinearMap(f"{host}_attn.proj", (out,), bias=False),
        LinearMap(f"{host}_mlp.0", (f"{mlp}.linear_in",), shape=(6, 1), bias=False),
        LinearMap(f"{host}_mlp.2", (f"{mlp}.linear_out",), shape=(1, 3), bias=False),
    )


DOUBLE_BLOCK = BlockMap(
    host="double_blocks",
    source="transformer_blocks",
    linears=_stream("img", "attn.to_qkv", "attn.to_out.0", "ff")
    + _stream("txt", "attn.to_added_qkv", "attn.to_add_out", "ff_context"),
    plain={
        "img_attn.norm.query_norm.weight": ("attn.norm_q.weight",),
        "img_attn.norm.key_norm.weight": ("attn.norm_k.weight",),
        "txt_attn.norm.query_norm.weight": ("attn.norm_added_q.weight",),
        "txt_attn.norm.key_norm.weight": ("attn.norm_added_k.weight",),
    },
    plain_shapes={
        f"{stream}_attn.norm.{name}_norm.weight": ("D",) for stream in ("img", "txt") for name in ("query", "key")
    },
    config_key="num_layers",
    modules={
        "img_attn.qkv": (QKV, ("attn.to_qkv",)),
        "txt_attn.qkv": (ADDED_QKV, ("attn.to_added_qkv",), ("attn.add_qkv_proj",)),
    },
)

SINGLE_BLOCK = BlockMap(
    host="single_blocks",
    source="single_transformer_blocks",
    linears=(
        LinearMap(
            "linear1",
            ("attn.qkv_proj", "attn.mlp_fc1"),
            split=lambda n, k: (3 * k, n - 3 * k),
            shape=(9, 1),
            bias=False,
        ),
        LinearMap(
            "linear2",
            ("attn.out_proj", "attn.mlp_fc2"),
            "columns",
            split=lambda n, k: (n, k - n),
            shape=(1, 4),
            bias=False,
        ),
    ),
    plain={
        "norm.query_norm.weight": ("attn.norm_q.weight",),
        "norm.key_norm.weight": ("attn.norm_k.weight",),
    },
    plain_shapes={"norm.query_norm.weight": ("D",), "norm.key_norm.weight": ("D",)},
    config_key="num_single_layers",
    modules={"linear1": (("attn.to_qkv_mlp_proj",),), "linear2": (("attn.to_out",),)},
)


def _metadata(plain: dict[str, Tensor], depths: dict[str, int]) -> dict:
    width, channels = plain["img_in.weight"].shape
    head = plain["double_blocks.0.img_attn.norm.query_norm.weight"].shape[0]
    diffusers = {
        "_class_name": "Flux2Transformer2DModel",
        "attention_head_dim": head,
        "axes_dims_rope": [32, 32, 32, 32],
        "guidance_embeds": "guidance_in.in_layer.weight" in plain,
        "in_channels": channels,
        "joint_attention_dim": plain["txt_in.weight"].shape[1],
        "mlp_ratio": 3.0,
        "num_attention_heads": width // head,
        "num_layers": depths["double_blocks"],
        "num_single_layers": depths["single_blocks"],
        "out_channels": None,
        "patch_size": 1,
        "rope_theta": 2000,
    }
    return {"config": diffusers, "model_class": "NunchakuFlux2Transformer2DModel"}


_MODULES = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}

FLUX2 = Architecture(
    name="flux2",
    title="FLUX.2",
    covers="FLUX.2 (Klein, dev)",
    asked=-1,  # its files have names of FLUX.1, too
    source_marks=("^double_stream_modulation_img.linear.", "to_qkv_mlp_proj."),
    host_marks=("^double_stream_modulation_img.lin.",),
    metadata=_metadata,
    lora=LoraNames(marks=("double_stream_modulation",)),
    published=(
        Published("FLUX.2-klein-9B-Nunchaku", 4096, {"double_blocks": 8, "single_blocks": 24}, 354_428_928),
        Published("FLUX.2-klein-4B-Nunchaku", 3072, {"double_blocks": 5, "single_blocks": 20}, 195_042_816),
    ),
    blocks=(DOUBLE_BLOCK, SINGLE_BLOCK),
    modules=_MODULES,
    without_bias=frozenset(_MODULES),
    optional=frozenset({"guidance_in"}),  # Klein has none
    swapped_halves=frozenset({"final_layer.adaLN_modulation.1"}),
    shapes={
        "img_in.weight": ("H", "*"),
        "txt_in.weight": ("H", "*"),
        "time_in.in_layer.weight": ("H", "256"),
        "time_in.out_layer.weight": ("H", "H"),
        "double_stream_modulation_img.lin.weight": ("6H", "H"),
        "double_stream_modulation_txt.lin.weight": ("6H", "H"),
        "single_stream_modulation.lin.weight": ("3H", "H"),
        "final_layer.adaLN_modulation.1.weight": ("2H", "H"),
        "final_layer.linear.weight": ("*", "H"),
    },
    older_tensors={"_norm.weight": "_norm.scale"},
)
