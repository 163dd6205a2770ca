"""The full-precision MODELs that can be quantized: their family, and their weights."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ....svdq_core.errors import ArchitectureError, SVDQuantError
from ....svdq_core.models import ARCHITECTURES, SUPPORTED, Architecture
from ..lora.bake import patched_weight
from .quantized_linear import is_quantized

PREFIX = "diffusion_model."


def architecture_of(model) -> Architecture:
    """The family of a dense model of ComfyUI's, by its modules.

    Raises:
        ArchitectureError: it is none that can be quantized here.
    """
    names = set(model.diffusion_model.state_dict())
    reasons = []
    for architecture in ARCHITECTURES.values():
        wanted = [f"{b.host}.0.{linear.host}.weight" for b in architecture.blocks for linear in b.linears]
        wanted += [f"{b.host}.0.{n}" for b in architecture.blocks for n in b.plain if n not in b.optional]
        wanted += [n for n in architecture.plain_tensors() if not architecture.is_optional(n)]
        missing = [name for name in wanted if name not in names]
        if not missing:
            return architecture
        reasons.append(f"{architecture.title} would have {missing[0]}")
    raise ArchitectureError(
        f"A model of class {type(model).__name__} cannot be quantized here ({'; '.join(reasons)}). "
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
        """The tensor on the CPU; patched ones in float32, others as the model holds them."""
        patched = PREFIX + name in self.patcher.patches
        return patched_weight(self.patcher, PREFIX + name, torch.float32 if patched else None)


def compute_device(patcher) -> torch.device:
    """Where the host would run the model."""
    return patcher.load_device


def plain_extras(model) -> dict[str, Tensor]:
    """What a file of this model must hold although the host's class has no such tensor.

    PixArt takes the scale of its position embedding from the shape of one that it does not keep.
    """
    config = model.model_config.unet_config
    if config.get("pe_interpolation") is None or "input_size" not in config:
        return {}
    positions = (config["input_size"] // config["patch_size"]) ** 2
    return {"pos_embed": torch.zeros(1, positions, 1, dtype=torch.bfloat16)}
