"""From a quantized model to the host's MODEL."""

import logging
from functools import partial
from pathlib import Path

import comfy.model_management
import comfy.sd
import torch

from ....svdq_core.checkpoint import Checkpoint, read_checkpoint
from ....svdq_core.checkpoint.read_errors import printable
from ....svdq_core.errors import ArchitectureError
from ....svdq_core.measured_choice import resolve_for_model
from ....svdq_core.models import SUPPORTED
from ....svdq_core.quantized_model import QuantizedModel
from ....svdq_core.runtime import describe_model, folds_gelu
from ....svdq_core.shared_input import SharedInput
from ..attention import choose_attention
from ..graphs.forward import install_graphs
from .build_errors import building
from .compile_ahead import compile_ahead
from .fold import fold_gelus, speed_up_gelus, wants_folding
from .patcher import adopt
from .quantized_linear import SVDQuantLinear, operations
from .weights_in import to_state_dict

logger = logging.getLogger("svdquant")


def load_model(
    path: str,
    compute: str,
    base: str | None = None,
    disable_dynamic: bool = False,
    load_device: torch.device | None = None,
):
    """Load an SVDQuant checkpoint as the host's MODEL; the host, too, calls this for another copy of it.

    Args:
        path: a file or legacy folder. compute: one of COMPUTE_CHOICES.
        base: a second file with everything that is not quantized, where the first does not have it.
        disable_dynamic: the host asks for a model without dynamic VRAM this way.
        load_device: what will run it; None: the host's current device.

    Raises:
        CheckpointError, ArchitectureError: see read_checkpoint and build_model.
    """
    patcher, status = load_model_with_status(path, compute, base, disable_dynamic, load_device=load_device)
    if load_device is not None:
        logger.info("copy for %s: %s", load_device, status)
    return patcher


def load_model_with_status(
    path: str,
    compute: str,
    base: str | None = None,
    disable_dynamic: bool = False,
    *,
    attention: str = "auto",
    load_device: torch.device | None = None,
):
    """load_model, and one line for the user: what the file is and what will run it.

    Args:
        attention: one of attention.CHOICES.
    """
    model = read_checkpoint(Checkpoint(Path(path), None if base is None else Path(base)))
    device = load_device or comfy.model_management.get_torch_device()
    mode, reason = resolve_for_model(compute, model, device, partial(_make_room, device))
    names = " + ".join(printable(Path(p).name) for p in (path, base) if p is not None)
    status = describe_model(names, model, mode, reason)
    status = "; ".join((status, *model.notes))
    with building(names):
        patcher = build_model(model, mode, disable_dynamic, device)
    patcher.cached_patcher_init = (load_model, (path, compute, base))
    install_graphs(patcher)
    words = choose_attention(patcher, attention)
    return patcher, f"{status}; {words}" if words else status


def _make_room(device: torch.device, needed: int) -> None:
    """Have the host unload models of before where the GPU has less memory left than is needed."""
    comfy.model_management.free_memory(needed, device)


def build_model(model: QuantizedModel, compute: str, disable_dynamic: bool = False, device: torch.device | None = None):
    """Hand a quantized model to the host's own model class; the layers of `model` are used up, one by one.

    Args:
        device: what will run it; None: the host's current device.

    Raises:
        ArchitectureError: the host does not know a model of these sizes.
    """
    device = device or comfy.model_management.get_torch_device()
    state_dict = to_state_dict(model, compute, device)
    options = {"custom_operations": operations(compute), "load_device": device}
    patcher = comfy.sd.load_diffusion_model_state_dict(
        state_dict, options, metadata=dict(model.metadata), disable_dynamic=disable_dynamic
    )
    if patcher is None:
        raise ArchitectureError(
            f"ComfyUI does not recognise this {model.architecture.title} model. Supported: {SUPPORTED}. "
            "Update ComfyUI, or check that the file is complete."
        )
    patcher = finish(patcher, compute, device)
    # on the model, which all clones share: what a file needs beyond the weights
    patcher.model.svdquant_architecture = model.architecture
    patcher.model.svdquant_metadata = dict(model.metadata)
    known = patcher.model.diffusion_model.state_dict()
    patcher.model.svdquant_unused = {name: t for name, t in model.plain.items() if name not in known}
    return patcher


def finish(patcher, compute: str, device: torch.device):
    """The MODEL of ours for ComfyUI's own one that holds quantized layers; modules are changed where they are.

    Folds GELUs into layers, gives the model the slot for inputs that several layers read, takes care of patches, and
    begins to compile what it will launch.
    """
    where = wants_folding(folds_gelu(device, compute))
    if where:
        fold_gelus(patcher.model, where)
    speed_up_gelus(patcher.model)
    slot = SharedInput()
    for module in patcher.model.modules():
        if isinstance(module, SVDQuantLinear):
            module.shared = slot
    compile_ahead(patcher, compute, device)
    return adopt(patcher)
