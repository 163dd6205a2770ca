"""A LoRA on the FLUX's blocks, while it is trained and as a file."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PREFIX = "diffusion_model."  # the host's names for LoRAs of diffusion models


class Adapter(nn.Module):
    """A Linear with a product of two thin matrices added: down (rank, K), up (N, rank)."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        down = torch.randn(rank, base.in_features) * base.in_features**-0.5
        self.down = nn.Parameter(down.to(base.weight.device))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.down), self.up)


def attach(model: nn.Module, rank: int) -> dict[str, Adapter]:
    """Freeze a FLUX and put an adapter on each Linear of its blocks, modulation left out; name -> adapter."""
    model.requires_grad_(False)
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "_blocks." in name and not name.endswith(".lin")
    }
    adapters = {}
    for name, linear in linears.items():
        parent, _, leaf = name.rpartition(".")
        adapters[name] = Adapter(linear, rank)
        setattr(model.get_submodule(parent), leaf, adapters[name])
    return adapters


def lora_weights(adapters: dict[str, Adapter]) -> dict[str, Tensor]:
    """The adapters as a LoRA file has them."""
    weights = {}
    for name, adapter in adapters.items():
        weights[f"{PREFIX}{name}.lora_A.weight"] = adapter.down
        weights[f"{PREFIX}{name}.lora_B.weight"] = adapter.up
    return weights
