"""Ernie Image: ComfyUI's names are diffusers', and no Linear of a block has a bias. No file of others is known.

Source: ComfyUI's comfy/ldm/ernie.
"""

from torch import Tensor

from .architecture import Architecture, LoraNames, Published
from .layer_maps import BlockMap, LinearMap

_SHAPES: dict[str, tuple[float | None, float | None]] = {
    "mlp.gate_proj": (None, 1),
    "mlp.up_proj": (None, 1),
    "mlp.linear_fc2": (1, None),
}
_GROUPS = {f"self_attention.to_{n}": "attention" for n in "qkv"} | {"mlp.gate_proj": "mlp", "mlp.up_proj": "mlp"}
_LINEARS = (*(f"self_attention.to_{n}" for n in "qkv"), "self_attention.to_out.0", *_SHAPES)
_NORMS = ("adaLN_sa_ln.weight", "adaLN_mlp_ln.weight")
_HEAD_NORMS = ("self_attention.norm_q.weight", "self_attention.norm_k.weight")
_MODULES = (
    *("x_embedder.proj", "text_proj", "time_embedding.linear_1", "time_embedding.linear_2"),
    *("adaLN_modulation.1", "final_norm.linear", "final_linear"),
)


def _metadata(plain: dict[str, Tensor], depths: dict[str, int]) -> dict:
    width, text_width = plain["text_proj.weight"].shape
    head = plain["layers.0.self_attention.norm_q.weight"].shape[0]
    return {
        "config": {
            "_class_name": "ErnieImageTransformer2DModel",
            "hidden_size": width,
            "num_attention_heads": width // head,
            "num_layers": depths["layers"],
            "text_in_dim": text_width,
        }
    }


ERNIE = Architecture(
    name="ernie",
    title="Ernie Image",
    source_marks=("^layers.0.adaLN_sa_ln.",),
    host_marks=("^layers.0.adaLN_sa_ln.",),
    metadata=_metadata,
    lora=LoraNames(marks=("layers.0.self_attention.",)),
    published=(
        Published(
            "ernie-image",
            4096,
            {"layers": 36},
            184_000_000,
            precisions=(),
            shapes={
                "mlp.gate_proj": (12288, 4096),
                "mlp.up_proj": (12288, 4096),
                "mlp.linear_fc2": (4096, 12288),
            },
        ),
    ),
    blocks=(
        BlockMap(
            host="layers",
            source="layers",
            linears=tuple(
                LinearMap(name, (name,), shape=_SHAPES.get(name, (1, 1)), bias=False, group=_GROUPS.get(name, ""))
                for name in _LINEARS
            ),
            plain={name: (name,) for name in (*_NORMS, *_HEAD_NORMS)},
            plain_shapes={name: ("H" if name in _NORMS else "D",) for name in (*_NORMS, *_HEAD_NORMS)},
            config_key="num_layers",
        ),
    ),
    modules={name: name for name in _MODULES},
    without_bias=frozenset({"text_proj"}),
    shapes={
        "x_embedder.proj.weight": ("H", "*", "*", "*"),
        "text_proj.weight": ("H", "*"),
        "adaLN_modulation.1.weight": ("6H", "H"),
        "final_norm.linear.weight": ("2H", "H"),
        "final_linear.weight": ("*", "H"),
    },
)
