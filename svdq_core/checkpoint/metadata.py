"""The metadata of a nunchaku file, worked out from the tensors of the model that goes into it."""

import json
from pathlib import Path

from torch import Tensor

from ...kernels.format import GROUP_SIZE_INT4, GROUP_SIZE_NVFP4
from ..quantized_model import QuantizedModel

_INT4 = {"dtype": "int4", "scale_dtype": None, "group_size": GROUP_SIZE_INT4}
_NVFP4_WEIGHT = {"dtype": "fp4_e2m1_all", "scale_dtype": [None, "fp8_e4m3_nan"], "group_size": GROUP_SIZE_NVFP4}
_NVFP4_ACTIVATION = {"dtype": "fp4_e2m1_all", "scale_dtype": "fp8_e4m3_nan", "group_size": GROUP_SIZE_NVFP4}


def pack_version() -> str:
    """The version of this pack, as pyproject.toml states it."""
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("version"))
    return line.split('"')[1]


def provenance(source: str) -> dict[str, str]:
    """What wrote a file, and from which one."""
    written = {"svdquant_written_by": f"ComfyUI-SVDQuant {pack_version()}"}
    return written | ({"svdquant_source": source} if source else {})


def nunchaku_metadata(model: QuantizedModel) -> dict[str, str]:
    """All keys that nunchaku's loaders read, those that the model already carries taken as they are.

    Keys: config (diffusers), comfy_config, model_class, quantization_config.
    """
    int4 = model.precision == "int4"
    quantization = {
        "method": "svdquant",
        "weight": _INT4 if int4 else _NVFP4_WEIGHT,
        "activation": _INT4 if int4 else _NVFP4_ACTIVATION,
        "rank": max(model.ranks, default=0),
    }
    made = {"quantization_config": quantization} | _MODEL_KEYS[model.architecture.name](model.plain, _depths(model))
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in made.items()}
    return texts | model.metadata | {"quantization_config": texts["quantization_config"]}


def _depths(model: QuantizedModel) -> dict[str, int]:
    return model.architecture.count_blocks([*model.layers, *model.plain], "host")


def _flux(plain: dict[str, Tensor], depths: dict[str, int]) -> dict:
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


def _pixart(plain: dict[str, Tensor], depths: dict[str, int]) -> dict:
    hidden, channels, patch, _ = plain["x_embedder.proj.weight"].shape
    diffusers = {
        "_class_name": "PixArtTransformer2DModel",
        "attention_head_dim": hidden // 16,
        "caption_channels": plain["y_embedder.y_proj.fc1.weight"].shape[1],
        "cross_attention_dim": hidden,
        "in_channels": channels,
        "norm_type": "ada_norm_single",
        "num_attention_heads": 16,
        "num_layers": depths["blocks"],
        "out_channels": 2 * channels,
        "patch_size": patch,
    }
    return {"config": diffusers, "model_class": "SVDQuantPixArtTransformer2DModel"}


_MODEL_KEYS = {"flux": _flux, "pixart": _pixart}
