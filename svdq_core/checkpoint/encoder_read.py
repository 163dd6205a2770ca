"""Reading a text encoder that this pack quantized: Hugging Face's names, packed layers beside plain tensors."""

from ..models.others import generic_family
from ..quantized_model import QuantizedModel
from .container import Checkpoint
from .packed import LAYOUT_SUFFIX, plan_linear
from .read_plan import Plan, host_modules, plan_rest
from .t5_read import is_t5, read_text_encoder


def holds_encoder_layers(checkpoint: Checkpoint) -> bool:
    """Whether a file has quantized layers that a text encoder of ComfyUI can run."""
    return is_t5(checkpoint) or any(name.endswith(LAYOUT_SUFFIX) for name in checkpoint)


def read_encoder(checkpoint: Checkpoint) -> QuantizedModel:
    """A 4-bit text encoder of any kind under the names that its file has.

    Raises:
        CheckpointError: it is damaged or incomplete.
    """
    tokenizers = [name for name in checkpoint if checkpoint.dtype(name) == "U8" and _is_tokenizer(name)]
    model = read_text_encoder(checkpoint) if is_t5(checkpoint) else _read_any(checkpoint, tokenizers)
    model.plain |= {checkpoint.prefix + name: checkpoint[name] for name in tokenizers}
    return model


def _is_tokenizer(name: str) -> bool:
    """Whether these bytes are no layer's."""
    return name.rpartition(".")[2].endswith(("_model", "_json"))


def _read_any(checkpoint: Checkpoint, others: list[str]) -> QuantizedModel:
    plan = Plan(checkpoint, generic_family("text encoder"))
    for module in host_modules(plan, LAYOUT_SUFFIX):
        plan_linear(plan, module)
    plan.want(*others)
    plan_rest(plan)
    model = plan.read()
    model.layers = {checkpoint.prefix + name: layer for name, layer in model.layers.items()}
    model.plain = {checkpoint.prefix + name: tensor for name, tensor in model.plain.items()}
    return model
