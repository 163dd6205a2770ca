"""FLUX.1 (dev, schnell, Krea, Kontext, Fill, Canny, Depth): host modules against nunchaku checkpoint layers.

Source: the names of deepcompressor's converter and of diffusers' FluxTransformer2DModel; ComfyUI's comfy/ldm/flux.
"""

from torch import Tensor

from .architecture import Architecture, LoraNames, Published
from .layer_maps import BlockMap, LinearMap, NativeLayer

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
FUSED = ("attn.to_qkv",)


def _stream(host: str, suffix: str, modulation: str) -> tuple[LinearMap, ...]:
    """The layers of the image or of the text stream of a double block."""
    return (
        LinearMap(f"{host}_mod.lin", (modulation,), modulation_chunks=6, shape=(6, 1)),
        LinearMap(f"{host}_attn.qkv", (f"qkv_proj{suffix}",), shape=(3, 1)),
        LinearMap(f"{host}_attn.proj", (f"out_proj{suffix}",)),
        LinearMap(f"{host}_mlp.0", (f"mlp{suffix}_fc1",), shape=(4, 1)),
        LinearMap(f"{host}_mlp.2", (f"mlp{suffix}_fc2",), unsigned=(0,), shape=(1, 4)),
    )


DOUBLE_BLOCK = BlockMap(
    host="double_blocks",
    source="transformer_blocks",
    linears=_stream("img", "", "norm1.linear") + _stream("txt", "_context", "norm1_context.linear"),
    plain={
        "img_attn.norm.query_norm.weight": ("norm_q.weight",),
        "img_attn.norm.key_norm.weight": ("norm_k.weight",),
        "txt_attn.norm.query_norm.weight": ("norm_added_q.weight",),
        "txt_attn.norm.key_norm.weight": ("norm_added_k.weight",),
    },
    plain_shapes={
        f"{stream}_attn.norm.{name}_norm.weight": ("D",) for stream in ("img", "txt") for name in ("query", "key")
    },
    config_key="num_layers",
    newer={
        "qkv_proj": "attn.to_qkv",
        "qkv_proj_context": "attn.add_qkv_proj",
        "out_proj": "attn.to_out.0",
        "out_proj_context": "attn.to_add_out",
        "mlp_fc1": "ff.net.0.proj",
        "mlp_fc2": "ff.net.2",
        "mlp_context_fc1": "ff_context.net.0.proj",
        "mlp_context_fc2": "ff_context.net.2",
        "norm_q.weight": "attn.norm_q.weight",
        "norm_k.weight": "attn.norm_k.weight",
        "norm_added_q.weight": "attn.norm_added_q.weight",
        "norm_added_k.weight": "attn.norm_added_k.weight",
    },
    modules={
        "img_attn.qkv": (QKV, FUSED),
        "txt_attn.qkv": (ADDED_QKV, ("attn.to_added_qkv",), ("attn.add_qkv_proj",)),
        "img_attn.proj": (("attn.to_out.0",),),
        "txt_attn.proj": (("attn.to_add_out",),),
        "img_mlp.0": (("ff.net.0.proj",),),
        "img_mlp.2": (("ff.net.2",),),
        "txt_mlp.0": (("ff_context.net.0.proj",),),
        "txt_mlp.2": (("ff_context.net.2",),),
    },
    native={
        "norm1.linear": NativeLayer(("norm1.linear",)),
        "norm1_context.linear": NativeLayer(("norm1_context.linear",)),
        "qkv_proj": NativeLayer(QKV),
        "qkv_proj_context": NativeLayer(ADDED_QKV, smooth="attn.add_k_proj", branch="attn.add_k_proj"),
        "out_proj": NativeLayer(("attn.to_out.0",), foldable=True),
        "out_proj_context": NativeLayer(("attn.to_add_out",), smooth="attn.to_out.0", foldable=True),
        "mlp_fc1": NativeLayer(("ff.net.0.proj",)),
        "mlp_fc2": NativeLayer(("ff.net.2",)),
        "mlp_context_fc1": NativeLayer(("ff_context.net.0.proj",)),
        "mlp_context_fc2": NativeLayer(("ff_context.net.2",)),
    },
)

SINGLE_BLOCK = BlockMap(
    host="single_blocks",
    source="single_transformer_blocks",
    linears=(
        LinearMap("modulation.lin", ("norm.linear",), modulation_chunks=3, shape=(3, 1)),
        LinearMap("linear1", ("qkv_proj", "mlp_fc1"), split=lambda n, k: (3 * k, n - 3 * k), shape=(7, 1)),
        LinearMap(
            "linear2", ("out_proj", "mlp_fc2"), "columns", unsigned=(1,), split=lambda n, k: (n, k - n), shape=(1, 5)
        ),
    ),
    plain={"norm.query_norm.weight": ("norm_q.weight",), "norm.key_norm.weight": ("norm_k.weight",)},
    plain_shapes={"norm.query_norm.weight": ("D",), "norm.key_norm.weight": ("D",)},
    config_key="num_single_layers",
    newer={
        "qkv_proj": "attn.to_qkv",
        "out_proj": "attn.to_out",
        "norm_q.weight": "attn.norm_q.weight",
        "norm_k.weight": "attn.norm_k.weight",
    },
    modules={
        "linear1": ((*QKV, "proj_mlp"), (*FUSED, "proj_mlp")),
        "linear2": (("proj_out",),),
    },
    native={
        "norm.linear": NativeLayer(("norm.linear",)),
        "qkv_proj": NativeLayer(QKV),
        "mlp_fc1": NativeLayer(("proj_mlp",), smooth="attn.to_q"),
        "out_proj": NativeLayer(("proj_out.linears.0",), foldable=True),
        "mlp_fc2": NativeLayer(("proj_out.linears.1",)),
    },
)


def _metadata(plain: dict[str, Tensor], depths: dict[str, int]) -> dict:
    hidden, patch_channels = plain["img_in.weight"].shape
    text_width, pooled_width = plain["txt_in.weight"].shape[1], plain["vector_in.in_layer.weight"].shape[1]
    guidance = "guidance_in.in_layer.weight" in plain
    heads = hidden // 128
    shared = {"axes_dim": [16, 56, 56], "theta": 10000, "mlp_ratio": 4.0, "qkv_bias": True}
    host = {
        "image_model": "flux",
        "in_channels": patch_channels // 4,
        "out_channels": 16,
        "patch_size": 2,
        "hidden_size": hidden,
        "num_heads": heads,
        "depth": depths["double_blocks"],
        "depth_single_blocks": depths["single_blocks"],
        "guidance_embed": guidance,
        "context_in_dim": text_width,
        "vec_in_dim": pooled_width,
        "disable_unet_model_creation": True,
    } | shared
    diffusers = {
        "_class_name": "FluxTransformer2DModel",
        "attention_head_dim": 128,
        "axes_dims_rope": shared["axes_dim"],
        "guidance_embeds": guidance,
        "in_channels": patch_channels,
        "joint_attention_dim": text_width,
        "num_attention_heads": heads,
        "num_layers": depths["double_blocks"],
        "num_single_layers": depths["single_blocks"],
        "out_channels": None if patch_channels == 64 else 64,
        "patch_size": 1,
        "pooled_projection_dim": pooled_width,
    }
    return {
        "config": diffusers,
        "comfy_config": {"model_class": "Flux" if guidance else "FluxSchnell", "model_config": host},
        "model_class": "NunchakuFluxTransformer2dModel",
    }


_COUNTS = {"double_blocks": 19, "single_blocks": 38}

FLUX = Architecture(
    name="flux",
    title="FLUX.1",
    covers="FLUX.1 (dev, schnell, Krea, Kontext, Fill, Canny, Depth)",
    source_marks=("^single_transformer_blocks.0.", "^transformer_blocks.0.norm1_context."),
    host_marks=("^double_blocks.", "^single_blocks."),
    metadata=_metadata,
    lora=LoraNames(
        base_rank=32,
        # ComfyUI has names for the two halves of linear1: its own for q, k, v, and diffusers' for the MLP
        parts={"linear1": ("{host}_qkv", "single_transformer_blocks.{index}.proj_mlp")},
        marks=("single_transformer_blocks.", "double_blocks.", "single_blocks."),
        called="FLUX",
    ),
    published=tuple(
        Published(f"flux.1-{name}", 3072, _COUNTS, 64_106_560)
        for name in ("dev", "schnell", "krea-dev", "kontext-dev", "fill-dev", "canny-dev", "depth-dev")
    ),
    older_suffixes=True,
    blocks=(DOUBLE_BLOCK, SINGLE_BLOCK),
    modules={
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
        "final_layer.linear": "proj_out",
    },
    optional=frozenset({"guidance_in"}),  # schnell has none
    swapped_halves=frozenset({"final_layer.adaLN_modulation.1"}),
    shapes={
        "img_in.weight": ("H", "*"),
        "txt_in.weight": ("H", "*"),
        "time_in.in_layer.weight": ("H", "256"),
        "time_in.out_layer.weight": ("H", "H"),
        "guidance_in.in_layer.weight": ("H", "256"),
        "guidance_in.out_layer.weight": ("H", "H"),
        "vector_in.in_layer.weight": ("H", "*"),
        "vector_in.out_layer.weight": ("H", "H"),
        "final_layer.adaLN_modulation.1.weight": ("2H", "H"),
        "final_layer.linear.weight": ("*", "H"),
    },
    older_tensors={"_norm.weight": "_norm.scale"},
)
