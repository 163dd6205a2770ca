"""What a model is run on when nobody gives it a prompt: noise as latent, and noise as every condition it may ask for.

ComfyUI's own model turns conditions into arguments (`extra_conds`), as it does for samplers. How wide its texts are it
does not say: each condition first gets a width that nothing else has, and the first layer that is given it tells the
right one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import comfy.model_base
import comfy.utils
import torch
from torch import Tensor

# Latents that are several tensors, by the name of ComfyUI's latent format: channels and further sizes of each, where F
# is the number of frames, S the side.
NESTED: dict[str, tuple[tuple[int | str, ...], ...]] = {
    "LTXAV": ((128, "F", "S", "W"), (8, "W", 16)),
    "MiniMaxH3AV": ((24, "F", "S", "W"), (32, 2, "W")),
}
# Conditions and the widths they are tried with at first: primes that no layer has.
FIRST_WIDTHS = {"text": 61, "pooled": 59, "llama3": 53, "byt5": 47, "vision": 43}
VECTOR = "y"  # ComfyUI's name of the vector beside the text, where the pooled text alone does not explain its width
LLAMA_LAYERS = 32  # that HiDream chooses from
SMALLEST_TEXT = 64  # features; of the widths that are tried where no layer tells
MOST_FACTOR = 64


class WidthError(Exception):
    """A layer was given an input of another width.

    Args:
        found: the last size of the input. expected: by the layer.
    """

    def __init__(self, where: str, found: int, expected: int):
        super().__init__(f"{where} takes {expected} features and was given {found}")
        self.found, self.expected = found, expected


@dataclass(frozen=True)
class Request:
    """How large a picture, and of what.

    Args:
        side: rows of the latent. wide: columns in units of the side. frames: of a video.
        tokens: of the text. widths: condition -> features.
        batch: pictures at once. masked: say which tokens count.
    """

    side: int = 8
    wide: int = 1
    frames: int = 2
    tokens: int = 12
    batch: int = 1
    masked: bool = False
    widths: dict[str, int] = field(default_factory=lambda: dict(FIRST_WIDTHS))


def draw_latent(model: comfy.model_base.BaseModel, request: Request, generator: torch.Generator) -> tuple[Tensor, Any]:
    """A latent of standard normal noise, and the shapes of its parts (None unless it has several)."""
    sizes = {"F": request.frames, "S": request.side, "W": request.side * request.wide}
    form = model.latent_format
    nested = NESTED.get(type(form).__name__)
    if nested is not None:
        parts = [torch.randn(request.batch, *(sizes.get(n, n) for n in part), generator=generator) for part in nested]  # type: ignore[misc]
        return comfy.utils.pack_latents(parts)
    axes = {1: ("W",), 2: ("S", "W"), 3: ("F", "S", "W")}[form.latent_dimensions]
    shape = (request.batch, form.latent_channels, *(sizes[axis] for axis in axes))
    return torch.randn(shape, generator=generator), None


def make_conditions(
    model: comfy.model_base.BaseModel,
    latent: Tensor,
    shapes: Any,
    request: Request,
    *,
    generator: torch.Generator,
    strength: Tensor | None = None,
) -> dict[str, Any]:
    """Arguments of apply_model, made by the model itself of noise.

    Args:
        strength: (batch,) factors of the texts; None: 1.
    """
    batch, tokens, widths = request.batch, request.tokens, request.widths
    scale = torch.ones(batch) if strength is None else strength

    def normal(*shape: int) -> Tensor:
        noise = torch.randn(batch, *shape, generator=generator)
        return (noise * scale.view(-1, *(1,) * len(shape))).to(latent.device)

    vision = normal(257, widths["vision"])
    given: dict[str, Any] = {
        "cross_attn": normal(tokens, widths["text"]),
        "pooled_output": torch.randn(batch, widths["pooled"], generator=generator).to(latent.device),
        "conditioning_llama3": normal(LLAMA_LAYERS, tokens, widths["llama3"]),
        "conditioning_byt5small": normal(6, widths["byt5"]),
        "clip_vision_output": SimpleNamespace(penultimate_hidden_states=vision, last_hidden_state=vision),
        "noise": latent,
        "latent_image": torch.zeros_like(latent),
        "device": latent.device,
        "prompt_type": "positive",
        "seed": 0,
        "width": 8 * latent.shape[-1],
        "height": 8 * (latent.shape[-2] if latent.ndim > 3 else request.side),
    }
    if request.masked:
        given["attention_mask"] = torch.ones(1, tokens, dtype=torch.long, device=latent.device)
    if shapes is not None:
        given["latent_shapes"] = shapes
    made = model.extra_conds(**given)
    conditions = {name: cond.process_cond(batch_size=batch, area=None).cond for name, cond in made.items()}
    if VECTOR in widths and VECTOR in conditions:
        conditions[VECTOR] = torch.randn(batch, widths[VECTOR], generator=generator).to(latent.device)
    return conditions


def learn_width(request: Request, error: WidthError) -> Request | None:
    """The request with the width that a layer asked for; None if no condition explains the error."""
    for name, first in FIRST_WIDTHS.items():
        if request.widths[name] == first and error.found == first:
            return replace(request, widths=request.widths | {name: error.expected})
    # a vector of which the pooled text is one part, as SDXL's
    rest = error.found - request.widths["pooled"]
    if request.widths["pooled"] == FIRST_WIDTHS["pooled"] and 0 < rest < error.expected:
        return replace(request, widths=request.widths | {"pooled": error.expected - rest})
    if VECTOR not in request.widths and rest > 0:
        return replace(request, widths=request.widths | {VECTOR: error.expected})
    return None


def guess_text_widths(model: comfy.model_base.BaseModel) -> Iterator[int]:
    """Widths that texts of a model may have, by the numbers in its configuration, where no layer tells."""
    numbers: list[int] = []
    for value in [*model.model_config.unet_config.values(), *vars(model.diffusion_model).values()]:
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(number, int) and not isinstance(number, bool) and number > 1:
                numbers.append(number)
        if isinstance(value, (list, tuple)) and len(value) > 1:
            numbers.append(len(value))
    distinct = list(dict.fromkeys(numbers))
    pairs = list(combinations(distinct, 2))
    sums = [a + b for a, b in pairs if min(a, b) >= SMALLEST_TEXT]
    products = [a * b for a, b in pairs if min(a, b) <= MOST_FACTOR and max(a, b) >= SMALLEST_TEXT]
    yield from dict.fromkeys(n for n in (*distinct, *sums, *products) if n >= SMALLEST_TEXT)
