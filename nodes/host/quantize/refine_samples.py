"""What a model is refined on where nobody recorded anything: noise at all times, with noise as text."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import comfy.model_base
import torch
from torch import Tensor

from ....svdq_core.errors import SVDQuantError
from ....svdq_core.quantize.refine_file import RunsOf
from ....svdq_core.quantize.statistics import named_generator
from .noise_conditions import Request, draw_latent, make_conditions
from .noise_forward import WEAKEST_TEXT
from .refine_runs import HostRuns

logger = logging.getLogger("svdquant")

SAMPLES = 32
SIDES = (64, 32)  # of the latents, the larger one first: 1024 tokens where a patch is 2 x 2
VIDEO_SIDES, FRAMES = (32, 16), 4
TEXT_TOKENS = 256


def refine_on_noise(
    model: comfy.model_base.BaseModel,
    request: Request,
    blocks: Mapping[str, str],
    *,
    seed: int,
    device: torch.device,
    poll: Callable[[], None] = lambda: None,
) -> RunsOf:
    """For quantize_refined: forwards of ComfyUI's model on noise.

    Args:
        model, request, blocks: as NoiseInputs.
        poll: see HostRuns.
    """
    video = model.latent_format.latent_dimensions == 3 and request.frames > 1
    frames = FRAMES if video else request.frames
    larger = [
        replace(request, side=max(request.side, side), frames=frames, tokens=TEXT_TOKENS, batch=1)
        for side in (VIDEO_SIDES if video else SIDES)
    ]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def make(weights: Mapping[str, Tensor]) -> HostRuns:
        problems: list[Exception] = []
        for attempted in (*larger, replace(request, batch=1)):  # some models have a largest size
            runs = HostRuns(
                model,
                list(blocks),
                weights=weights,
                samples=lambda twin, asked=attempted: draw_samples(twin, asked, seed, device),
                device=device,
                dtype=dtype,
                poll=poll,
            )
            try:
                runs.begin()
            except torch.OutOfMemoryError:
                runs.close()
                raise
            except Exception as error:  # noqa: BLE001  ComfyUI's classes fail in every way on inputs that do not fit
                problems.append(error)
                runs.close()
            else:
                return runs
        raise SVDQuantError(
            f"{type(model).__name__} cannot be run on noise ({problems[0]}), so it cannot be refined. Choose method "
            "best."
        ) from problems[0]

    return make


def draw_samples(
    twin: comfy.model_base.BaseModel, request: Request, seed: int, device: torch.device
) -> Sequence[Mapping[str, Any]]:
    """Arguments of apply_model, of one picture each, at times that are spread over the whole way."""
    generator = named_generator(seed, "refine")
    places = (torch.randperm(SAMPLES, generator=generator) + torch.rand(SAMPLES, generator=generator)) / SAMPLES
    sizes = WEAKEST_TEXT ** torch.rand(SAMPLES, generator=generator)
    samples = []
    for place, size in zip(places.tolist(), sizes, strict=True):
        latent, shapes = draw_latent(twin, request, generator)
        sigma = torch.tensor([float(twin.model_sampling.percent_to_sigma(place))])
        # so large that the network sees numbers of unit size, as it does while sampling
        latent = latent / twin.model_sampling.calculate_input(sigma, torch.ones_like(latent))
        latent, sigma = latent.to(device), sigma.to(device)
        conditions = make_conditions(twin, latent, shapes, request, generator=generator, strength=size[None])
        samples.append({"x": latent, "t": sigma, **conditions})
    return samples
