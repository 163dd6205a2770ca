"""The demo's FLUX with exchangeable Linears, and the latents on the way from noise to picture."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...demo.install import FLUX, LORA, MODELS
from ...demo.model_files import read_model
from ..training.sampler import GUIDANCE, schedule
from ..training.small_flux import Flux, rotary_angles
from .evaluated_scenes import Scenes

DECODER = "taef1_decoder.safetensors"
BLOCKS = ("double_blocks.", "single_blocks.")
BATCH = 160  # pictures that go through the network at once


def load_flux(device: torch.device) -> Flux:
    """The demo's FLUX: its BF16 weights, computed in float32."""
    return read_model(Flux(), MODELS / FLUX, device)


def flux_weights() -> dict[str, Tensor]:
    """The tensors of its file, by the host's names; copies, since somebody may write a new file over this one."""
    return {name: tensor.clone() for name, tensor in load_file(MODELS / FLUX).items()}


def lora_factors(path: Path = MODELS / LORA) -> dict[str, tuple[Tensor, Tensor]]:
    """Linear -> down (K, r) and up (N, r) of the demo's LoRA at strength 1, float32."""
    tensors = load_file(path)
    factors = {}
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            stem = key.removesuffix(".lora_A.weight")
            down, up = tensors[key].float(), tensors[f"{stem}.lora_B.weight"].float()
            alpha = tensors.get(f"{stem}.alpha")
            scale = 1.0 if alpha is None else float(alpha) / len(down)
            factors[stem.removeprefix("diffusion_model.")] = (down.T.contiguous(), up * scale)
    return factors


def block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The Linears that a quantizer takes, by the host's names."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith(BLOCKS)}


def with_layers(model: Flux, layers: Mapping[str, nn.Module]) -> Flux:
    """A copy of the model that has other layers in the named places."""
    changed = copy.deepcopy(model)
    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        setattr(changed.get_submodule(parent), leaf, layer)
    return changed


@torch.no_grad()
def latents_by_step(
    model: nn.Module, scenes: Scenes, noise: Tensor, steps: int, half: bool = False
) -> Iterator[Tensor]:
    """Draw with euler on the host's schedule; the latents (B, 16, 32, 32) float32 after each step.

    Args:
        half: compute in bfloat16 where torch's autocast does.
    """
    shares = schedule(steps)
    angles = rotary_angles(noise.shape[2] // 2, noise.shape[3] // 2, scenes.context.shape[1], noise.device)
    x = noise
    for share, following in pairwise(shares):
        velocities = []
        for start in range(0, len(x), BATCH):
            part = slice(start, start + BATCH)
            time = torch.full((len(x[part]),), share, device=x.device)
            guidance = torch.full_like(time, GUIDANCE)
            with torch.autocast(x.device.type, torch.bfloat16) if half else nullcontext():
                velocity = model(x[part], time, scenes.context[part], scenes.pooled[part], guidance, angles=angles)
            velocities.append(velocity.float())
        x = x + (following - share) * torch.cat(velocities)
        yield x
