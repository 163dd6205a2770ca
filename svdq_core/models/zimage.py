"""Z-Image and Z-Image-Turbo.

Source: nunchaku's transformer_zimage.py and diffusers' ZImageTransformer2DModel; ComfyUI's comfy/ldm/lumina. Proven on
a file of deepcompressor's converter.
"""

from dataclasses import replace

from torch import Tensor

from .architecture import Architecture, LoraNames, Published
from .layer_maps import BlockMap, LinearMap, halves

QKV = ("attention.to_q", "attention.to_k", "attention.to_v")
FF_IN, FF_OUT = "feed_forward.net.0.proj", "feed_forward.net.2"

_LINEARS = (
    LinearMap("attention.qkv", ("attention.to_qkv",), shape=(3, 1), bias=False, apart=QKV),
    LinearMap("attention.out", ("attention.to_out.0",), bias=False),
    # the first half of the rows is what w1, behind its SiLU, is multiplied with
    LinearMap("feed_forward.w3", (FF_IN,), piece=0, split=halves, shape=(None, 1), bias=False),
    LinearMap("feed_forward.w1", (FF_IN,), piece=1, split=halves, shape=(None, 1), bias=False),
    LinearMap("feed_forward.w2", (FF_OUT,), shape=(1, None), bias=False),
)
_NORMS = ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")
_PLAIN = {
    "attention.q_norm.weight": ("attention.norm_q.weight",),
    "attention.k_norm.weight": ("attention.norm_k.weight",),
} | {f"{name}.weight": (f"{name}.weight",) for name in _NORMS}
_MODULATION = {f"adaLN_modulation.0.{end}": (f"adaLN_modulation.0.{end}",) for end in ("weight", "bias")}


def _block(name: str, config_key: str, modulated: bool = True) -> BlockMap:
    return BlockMap(
        host=name,
        source=name,
        linears=_LINEARS,
        plain=_PLAIN | (_MODULATION if modulated else {}),
        plain_shapes={f"{norm}.weight": ("H",) for norm in _NORMS}
        | {"attention.q_norm.weight": ("D",), "attention.k_norm.weight": ("D",)},
        config_key=config_key,
        modules={
            "attention.qkv": (QKV, ("attention.to_qkv",)),
            "feed_forward.w3": (("feed_forward.w3",), (FF_IN,)),
            "feed_forward.w1": (("feed_forward.w1",), (FF_IN,)),
            "feed_forward.w2": (("feed_forward.w2",), (FF_OUT,)),
        },
    )


def _metadata(plain: dict[str, Tensor], depths: dict[str, int]) -> dict:
    width, text_width = plain["cap_embedder.1.weight"].shape
    head = plain["layers.0.attention.q_norm.weight"].shape[0]
    diffusers = {
        "_class_name": "ZImageTransformer2DModel",
        "all_f_patch_size": [1],
        "all_patch_size": [2],
        "axes_dims": [32, 48, 48],
        "axes_lens": [1536, 512, 512],
        "cap_feat_dim": text_width,
        "dim": width,
        "in_channels": plain["x_embedder.weight"].shape[1] // 4,
        "n_heads": width // head,
        "n_kv_heads": width // head,
        "n_layers": depths["layers"],
        "n_refiner_layers": depths["noise_refiner"],
        "norm_eps": 1e-5,
        "qk_norm": True,
        "rope_theta": 256.0,
        "t_scale": 1000.0,
    }
    return {
        "config": diffusers,
        "model_class": "NunchakuZImageTransformer2DModel",
        "quantization_config": {"skip_refiners": "noise_refiner.0.attention.qkv.weight" in plain},
    }


ZIMAGE = Architecture(
    name="zimage",
    title="Z-Image",
    source_marks=("^all_x_embedder.", ".attention.to_qkv.", "feed_forward.net.", "feed_forward.w13."),
    host_marks=("^cap_pad_token", "^x_pad_token"),
    metadata=_metadata,
    lora=LoraNames(
        marks=("noise_refiner.", "context_refiner.", "layers.0.attention.", "layers.0.feed_forward."),
        called="Z-Image or Lumina 2",
    ),
    published=(
        Published(
            "z-image-turbo",
            3840,
            {"layers": 30, "noise_refiner": 2, "context_refiner": 2},
            136_881_536,
            ranks=(32, 128, 256),
            shapes={
                "feed_forward.w1": (10240, 3840),
                "feed_forward.w3": (10240, 3840),
                "feed_forward.w2": (3840, 10240),
            },
        ),
    ),
    blocks=(
        _block("noise_refiner", "n_refiner_layers"),
        _block("context_refiner", "n_refiner_layers", modulated=False),
        _block("layers", "n_layers"),
    ),
    modules={
        "x_embedder": "all_x_embedder.2-1",
        "cap_embedder.1": "cap_embedder.1",
        "t_embedder.mlp.0": "t_embedder.mlp.0",
        "t_embedder.mlp.2": "t_embedder.mlp.2",
        "final_layer.linear": "all_final_layer.2-1.linear",
        "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
    },
    tensors={name: name for name in ("cap_embedder.0.weight", "x_pad_token", "cap_pad_token")},
    optional=frozenset({"x_pad_token", "cap_pad_token"}),
    shapes={
        "x_embedder.weight": ("H", "*"),
        "cap_embedder.0.weight": ("*",),
        "cap_embedder.1.weight": ("H", "*"),
        "final_layer.linear.weight": ("*", "H"),
    },
)


def _vllm_linear(linear: LinearMap) -> LinearMap:
    """vLLM-Omni's names: w13 is [w1; w3]."""
    if linear.piece is not None:
        return replace(linear, sources=("feed_forward.w13",), piece=1 - linear.piece)
    return replace(linear, sources=("feed_forward.w2",)) if linear.sources == (FF_OUT,) else linear


_VLLM_BLOCKS = tuple(
    replace(b, linears=tuple(map(_vllm_linear, b.linears)), modules={"attention.qkv": b.modules["attention.qkv"]})
    for b in ZIMAGE.blocks
)
ZIMAGE = replace(ZIMAGE, row_major=replace(ZIMAGE, blocks=_VLLM_BLOCKS))
