"""Krea 2 (Turbo, Raw).

Source: the converter and loader of the krea2-nunchaku port, diffusers' Krea2Transformer2DModel, and ComfyUI's
comfy/ldm/krea2. Proven on a file of that converter.
"""

from torch import Tensor

from .architecture import Architecture, LoraNames, Published
from .layer_maps import BlockMap, LinearMap, PlainMap

_FUSED = ("attn.to_qkv_gate",)


def _split(rows: int, columns: int) -> tuple[int, ...]:
    """q, k, v and gate: q and gate as wide as the model, k and v have fewer heads."""
    return columns, (rows - 2 * columns) // 2, (rows - 2 * columns) // 2, columns


def _piece(host: str, index: int, rows: float | None) -> LinearMap:
    return LinearMap(host, _FUSED, piece=index, split=_split, shape=(rows, 1), bias=False)


BLOCK = BlockMap(
    host="blocks",
    source="transformer_blocks",
    linears=(
        _piece("attn.wq", 0, 1),
        _piece("attn.wk", 1, None),
        _piece("attn.wv", 2, None),
        _piece("attn.gate", 3, 1),
        LinearMap("attn.wo", ("attn.to_out.0",), bias=False),
        LinearMap("mlp.gate", ("ff.gate",), shape=(None, 1), bias=False, group="ff"),
        LinearMap("mlp.up", ("ff.up",), shape=(None, 1), bias=False, group="ff"),
        LinearMap("mlp.down", ("ff.down",), shape=(1, None), bias=False),
    ),
    plain={
        "attn.qknorm.qnorm.scale": ("attn.norm_q.weight",),
        "attn.qknorm.knorm.scale": ("attn.norm_k.weight",),
        "prenorm.scale": ("norm1.weight",),
        "postnorm.scale": ("norm2.weight",),
        "mod.lin": PlainMap(("scale_shift_table",), rows=6),
    },
    plain_shapes={
        "attn.qknorm.qnorm.scale": ("D",),
        "attn.qknorm.knorm.scale": ("D",),
        "prenorm.scale": ("H",),
        "postnorm.scale": ("H",),
        "mod.lin": ("6H",),
    },
    config_key="num_layers",
    modules={
        "attn.wq": (("attn.to_q",), _FUSED),
        "attn.wk": (("attn.to_k",), _FUSED),
        "attn.wv": (("attn.to_v",), _FUSED),
        "attn.gate": (("attn.to_gate",), _FUSED),
    },
)

# what makes one text of the layers of the text encoder: always in 16 bits
_TEXT = {
    "attn.wq.weight": ("attn.to_q.weight",),
    "attn.wk.weight": ("attn.to_k.weight",),
    "attn.wv.weight": ("attn.to_v.weight",),
    "attn.gate.weight": ("attn.to_gate.weight",),
    "attn.wo.weight": ("attn.to_out.0.weight",),
    "attn.qknorm.qnorm.scale": ("attn.norm_q.weight",),
    "attn.qknorm.knorm.scale": ("attn.norm_k.weight",),
    "mlp.gate.weight": ("ff.gate.weight",),
    "mlp.up.weight": ("ff.up.weight",),
    "mlp.down.weight": ("ff.down.weight",),
    "prenorm.scale": ("norm1.weight",),
    "postnorm.scale": ("norm2.weight",),
}


def _metadata(plain: dict[str, Tensor], depths: dict[str, int]) -> dict:
    width, patch_channels = plain["first.weight"].shape
    head = plain["blocks.0.attn.qknorm.qnorm.scale"].shape[0]
    text_head = plain["txtfusion.layerwise_blocks.0.attn.qknorm.qnorm.scale"].shape[0]
    text = plain["txtfusion.layerwise_blocks.0.attn.wq.weight"].shape[1]
    keys, inner = plain.get("blocks.0.attn.wk.weight"), plain.get("blocks.0.mlp.gate.weight")
    diffusers = {
        "_class_name": "Krea2Transformer2DModel",
        "attention_head_dim": head,
        "axes_dims_rope": [32, 48, 48],
        "in_channels": patch_channels,
        "intermediate_size": _rows(inner, round(width * 8 / 3)),
        "norm_eps": 1e-5,
        "num_attention_heads": width // head,
        "num_key_value_heads": _rows(keys, width // 4) // head,
        "num_layers": depths["blocks"],
        "num_layerwise_text_blocks": depths["txtfusion.layerwise_blocks"],
        "num_refiner_text_blocks": depths["txtfusion.refiner_blocks"],
        "num_text_layers": plain["txtfusion.projector.weight"].shape[1],
        "rope_theta": 1000.0,
        "text_hidden_dim": text,
        "text_intermediate_size": plain["txtfusion.layerwise_blocks.0.mlp.gate.weight"].shape[0],
        "text_num_attention_heads": text // text_head,
        "text_num_key_value_heads": text // text_head,
        "timestep_embed_dim": plain["tmlp.0.weight"].shape[1],
    }
    return {"config": diffusers}


def _rows(weight: Tensor | None, otherwise: int) -> int:
    return otherwise if weight is None or weight.ndim != 2 else weight.shape[0]


KREA2 = Architecture(
    name="krea2",
    title="Krea 2",
    source_marks=(".attn.to_qkv_gate.", "^text_fusion."),
    host_marks=("^txtfusion.",),
    metadata=_metadata,
    lora=LoraNames(marks=("txtfusion.", "text_fusion.", ".attn.wq", ".attn.to_gate")),
    published=(
        Published(
            "krea-2-turbo",
            6144,
            {"blocks": 28, "txtfusion.layerwise_blocks": 2, "txtfusion.refiner_blocks": 2},
            664_980_044,
            precisions=("int4",),
            shapes={
                "attn.wk": (1536, 6144),
                "attn.wv": (1536, 6144),
                "mlp.gate": (16384, 6144),
                "mlp.up": (16384, 6144),
                "mlp.down": (6144, 16384),
            },
        ),
    ),
    blocks=(
        BLOCK,
        BlockMap("txtfusion.layerwise_blocks", "text_fusion.layerwise_blocks", (), _TEXT),
        BlockMap("txtfusion.refiner_blocks", "text_fusion.refiner_blocks", (), _TEXT),
    ),
    modules={
        "first": "img_in",
        "tmlp.0": "time_embed.linear_1",
        "tmlp.2": "time_embed.linear_2",
        "tproj.1": "time_mod_proj",
        "txtmlp.1": "txt_in.linear_1",
        "txtmlp.3": "txt_in.linear_2",
        "txtfusion.projector": "text_fusion.projector",
        "last.linear": "final_layer.linear",
    },
    without_bias=frozenset({"txtfusion.projector"}),
    tensors={
        "txtmlp.0.scale": "txt_in.norm.weight",
        "last.norm.scale": "final_layer.norm.weight",
        "last.modulation.lin": "final_layer.scale_shift_table",
    },
    shapes={
        "first.weight": ("H", "*"),
        "tproj.1.weight": ("6H", "*"),
        "last.linear.weight": ("*", "H"),
        "last.norm.scale": ("H",),
        "last.modulation.lin": ("2", "H"),
    },
)
