"""From a quantized model to the host's MODEL, and back."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import comfy.sd
import torch
from torch import Tensor

from ....svdq_core.checkpoint import Checkpoint, read_checkpoint
from ....svdq_core.checkpoint.read_errors import printable
from ....svdq_core.errors import ArchitectureError, SVDQuantError
from ....svdq_core.models import ARCHITECTURES, SUPPORTED, Architecture
from ....svdq_core.quantized_model import QuantizedModel
from ....svdq_core.runtime import describe_model, folds_gelu, resolve_compute, with_derived
from ....svdq_core.stack import as_in_files
from ..attention import choose_attention
from ..lora.bake import baked_layer, patched_weight
from .fold import fold_gelus, speed_up_gelus, wants_folding
from .patcher import adopt
from .quantized_linear import LAYOUT_KEY, SVDQuantLinear, layout_to_tensor, operations

PREFIX = "diffusion_model."


def load_model(path: str, compute: str, disable_dynamic: bool = False):
    """Load an SVDQuant checkpoint as the host's MODEL; the host, too, calls this for another copy of it.

    Args:
        path: a file or legacy folder. compute: one of COMPUTE_CHOICES.
        disable_dynamic: the host asks for a model without dynamic VRAM this way.

    Raises:
        CheckpointError, ArchitectureError: see read_checkpoint and build_model.
    """
    return load_model_with_status(path, compute, disable_dynamic)[0]


def load_model_with_status(path: str, compute: str, disable_dynamic: bool = False, attention: str = "auto"):
    """load_model, and one line for the user: what the file is and what will run it.

    Args:
        attention: one of attention.CHOICES.
    """
    model = read_checkpoint(Checkpoint(Path(path)))
    mode, reason = resolve_compute(compute, model.precision, comfy.model_management.get_torch_device())
    status = describe_model(printable(Path(path).name), model, mode, reason)
    patcher = build_model(model, mode, disable_dynamic)
    patcher.cached_patcher_init = (load_model, (path, compute))
    words = choose_attention(patcher, attention)
    return patcher, f"{status}; {words}" if words else status


def build_model(model: QuantizedModel, compute: str, disable_dynamic: bool = False):
    """Hand a quantized model to the host's own model class; the layers of `model` are used up, one by one.

    Raises:
        ArchitectureError: the host does not know a model of these sizes.
    """
    state_dict, device = dict(model.plain), comfy.model_management.get_torch_device()
    for name in list(model.layers):
        layer = with_derived(model.layers.pop(name), compute, device)
        blob, layout = layer.to_blob()
        state_dict[f"{name}.weight"], state_dict[f"{name}.{LAYOUT_KEY}"] = blob, layout_to_tensor(layout)
        if layer.bias is not None:
            state_dict[f"{name}.bias"] = layer.bias
    options = {"custom_operations": operations(compute)}
    patcher = comfy.sd.load_diffusion_model_state_dict(state_dict, options, disable_dynamic=disable_dynamic)
    if patcher is None:
        raise ArchitectureError(
            f"ComfyUI does not recognise this {model.architecture.title} model. Supported: {SUPPORTED}. "
            "Update ComfyUI, or check that the file is complete."
        )
    where = wants_folding(folds_gelu(device, compute))
    if where:
        fold_gelus(patcher.model, where)
    speed_up_gelus(patcher.model)
    patcher = adopt(patcher)
    # on the model, which all clones share: what a file needs beyond the weights
    patcher.model.svdquant_architecture = model.architecture
    patcher.model.svdquant_metadata = dict(model.metadata)
    known = patcher.model.diffusion_model.state_dict()
    patcher.model.svdquant_unused = {name: t for name, t in model.plain.items() if name not in known}
    return patcher


def is_quantized(patcher) -> bool:
    """Whether any layer of a MODEL is an SVDQuant layer."""
    return any(isinstance(m, SVDQuantLinear) and m.quantized for m in patcher.model.modules())


def architecture_of(patcher) -> Architecture:
    """The family of a dense MODEL, by its modules.

    Raises:
        ArchitectureError: it is none that can be quantized here.
    """
    names = set(patcher.model.diffusion_model.state_dict())
    reasons = []
    for architecture in ARCHITECTURES.values():
        wanted = [f"{b.host}.0.{linear.host}.weight" for b in architecture.blocks for linear in b.linears]
        wanted += [n for n in architecture.plain_tensors() if not architecture.is_optional(n)]
        missing = [name for name in wanted if name not in names]
        if not missing:
            return architecture
        reasons.append(f"{architecture.title} would have {missing[0]}")
    raise ArchitectureError(
        f"A model of class {type(patcher.model).__name__} cannot be quantized here ({'; '.join(reasons)}). "
        f"Supported: {SUPPORTED}."
    )


class DenseWeights(Mapping[str, Tensor]):
    """The weights of a dense MODEL, patches of LoRAs applied, one tensor at a time.

    Raises:
        SVDQuantError: on construction, if the weights are not 16- or 32-bit floats.
    """

    def __init__(self, patcher):
        self.patcher = patcher
        self.names = [n.removeprefix(PREFIX) for n in patcher.model.state_dict() if n.startswith(PREFIX)]
        self.count = sum(t.numel() for t in patcher.model.diffusion_model.state_dict().values())
        self.patched = sorted(n.removeprefix(PREFIX) for n in patcher.patches if n.startswith(PREFIX))
        if is_quantized(patcher):
            raise SVDQuantError("This model is an SVDQuant model already. Quantize the full-precision model instead.")
        for name, tensor in patcher.model.diffusion_model.state_dict().items():
            dtype = tensor.dtype
            if dtype not in (torch.bfloat16, torch.float16, torch.float32):
                raise SVDQuantError(
                    f"{name} is {str(dtype).removeprefix('torch.')}: the model was loaded in a reduced precision, and "
                    "quantizing twice loses quality. Load the BF16 file with weight_dtype default."
                )

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Tensor:
        """The tensor in float32 on the CPU."""
        return patched_weight(self.patcher, PREFIX + name, torch.float32)


def compute_device(patcher) -> torch.device:
    """Where the host would run the model."""
    return patcher.load_device


def plain_extras(patcher) -> dict[str, Tensor]:
    """What a file of this MODEL must hold although the host's class has no such tensor.

    PixArt takes the scale of its position embedding from the shape of one that it does not keep.
    """
    config = patcher.model.model_config.unet_config
    if config.get("pe_interpolation") is None or "input_size" not in config:
        return {}
    positions = (config["input_size"] // config["patch_size"]) ** 2
    return {"pos_embed": torch.zeros(1, positions, 1, dtype=torch.bfloat16)}


def extract_model(patcher) -> QuantizedModel:
    """An SVDQuant MODEL as a quantized model under the host's names, LoRAs baked in as extra rank.

    Raises:
        SVDQuantError: the MODEL has no SVDQuant layers.
    """
    if not is_quantized(patcher):
        raise SVDQuantError("This model has no SVDQuant layers. Load one, or quantize this one, and export that.")
    architecture = patcher.model.svdquant_architecture
    model = QuantizedModel(architecture, metadata=dict(patcher.model.svdquant_metadata))
    layers = {key.removeprefix(PREFIX).removesuffix(".weight"): m for key, m in patcher.svdquant_layers().items()}
    for name, module in layers.items():
        layer = as_in_files(module.layer_on(torch.device("cpu")))
        layer = baked_layer(layer, patcher.patches.get(f"{PREFIX}{name}.weight", []), name)
        if f"{PREFIX}{name}.bias" in patcher.patches:
            layer = replace(layer, bias=patched_weight(patcher, f"{PREFIX}{name}.bias"))
        model.layers[name] = layer
    dtype = _half_dtype(model)
    for name in _plain_names(patcher, layers):
        model.plain[name] = patched_weight(patcher, PREFIX + name, dtype)
    model.plain |= patcher.model.svdquant_unused
    return model


def _half_dtype(model: QuantizedModel) -> torch.dtype:
    """The 16-bit dtype of the file: that of the low-rank branches."""
    return next(p["proj_up"].dtype for layer in model.layers.values() for p in layer.parts if p.scheme != "awq")


def _plain_names(patcher, layers: dict) -> Iterator[str]:
    for name in patcher.model.diffusion_model.state_dict():
        if name.rpartition(".")[0] not in layers:
            yield name
