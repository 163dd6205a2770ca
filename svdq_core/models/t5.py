"""T5-XXL, the text encoder of FLUX.1, SD3 and others: all Linears of its blocks as AWQ, without biases.

Names are Hugging Face's, in files as in ComfyUI's comfy/text_encoders/t5.py.
"""

from .architecture import Architecture
from .layer_maps import BlockMap, LinearMap

_ATTENTION, _MLP = "layer.0.SelfAttention", "layer.1.DenseReluDense"
_RELATIVE = f"{_ATTENTION}.relative_attention_bias.weight"
_LINEARS = (
    *(LinearMap(f"{_ATTENTION}.{n}", (f"{_ATTENTION}.{n}",), shape=(None, 1), bias=False, group="attn") for n in "qkv"),
    LinearMap(f"{_ATTENTION}.o", (f"{_ATTENTION}.o",), shape=(1, None), bias=False),
    *(LinearMap(f"{_MLP}.{n}", (f"{_MLP}.{n}",), shape=(None, 1), bias=False, group="mlp") for n in ("wi_0", "wi_1")),
    LinearMap(f"{_MLP}.wo", (f"{_MLP}.wo",), shape=(1, None), bias=False),
)
_PLAIN = {name: (name,) for name in ("layer.0.layer_norm.weight", "layer.1.layer_norm.weight", _RELATIVE)}

T5 = Architecture(
    name="t5",
    title="T5-XXL",
    source_marks=("^encoder.block.0.layer.0.SelfAttention.",),
    host_marks=("^encoder.block.0.layer.0.SelfAttention.",),
    blocks=(
        BlockMap(
            host="encoder.block",
            source="encoder.block",
            linears=_LINEARS,
            plain=_PLAIN,
            plain_shapes={"layer.0.layer_norm.weight": ("H",), "layer.1.layer_norm.weight": ("H",)},
            config_key="num_layers",
            optional=frozenset({_RELATIVE}),  # the first block has it for all
        ),
    ),
    tensors={name: name for name in ("shared.weight", "encoder.final_layer_norm.weight")},
    shapes={"shared.weight": ("*", "H"), "encoder.final_layer_norm.weight": ("H",)},
)
