"""How long a run will take, from two small layers on the same device."""

import time

import torch

from .model_plan import ModelPlan
from .one_layer import quantize_part
from .spec import QuantSpec
from .statistics import InputStatistics, named_generator
from .whole_model import groups_of

TRIAL_TOKENS = 512
# Sides of the layers. On a GPU one of 3072 takes hardly longer than one of 1024, so the second is larger: with 3072
# `best` of Krea 2 was expected in 26 s and took 92. A CPU takes as long as there are weights.
TRIAL_SIDES = {"cuda": (1024, 6144), "cpu": (1024,)}
BEST_OVER_FAST = 4.0  # measured on an H200: FLUX.1 41 and 160 s, LTX-2.3 73 and 257 s
FORWARD = 1.3  # reading, the forward on noise and writing, beside the layers themselves
WORTH_A_TRIAL = 1 << 26  # weights; less takes seconds


def estimate_seconds(plan: ModelPlan, spec: QuantSpec, device: torch.device) -> float:
    """Expected seconds for a plan; 0 where it is hardly worth asking, or there is no memory to try."""
    groups = [g for layers in plan.blocks.values() for g in groups_of(layers).values() if not g[0].is_modulation]
    weights = sum(layer.weights for group in groups for layer in group)
    if weights < WORTH_A_TRIAL:
        return 0.0
    sides = TRIAL_SIDES.get(device.type, TRIAL_SIDES["cpu"])
    try:
        times = [_trial(side, spec, device) for side in sides]
    except torch.OutOfMemoryError:
        return 0.0
    small, large = sides[0] ** 2, sides[-1] ** 2
    each = times[0] / small if len(sides) == 1 else max(0.0, times[-1] - times[0]) / (large - small)
    fixed = max(0.0, times[0] - each * small)
    factor = FORWARD * (BEST_OVER_FAST if spec.method == "best" else 1.0)
    return factor * (fixed * len(groups) + each * weights)


def _trial(side: int, spec: QuantSpec, device: torch.device) -> float:
    """Seconds that one layer takes with method fast."""
    generator = named_generator(0, "trial")
    own = torch.Generator(device).manual_seed(0)
    weight = torch.randn(side, side, generator=own, device=device)
    tokens = torch.randn(TRIAL_TOKENS, side, generator=generator).to(device)
    trial = QuantSpec(spec.precision, spec.activations, spec.rank)
    statistics = InputStatistics.from_tokens(tokens)
    seconds = 0.0
    for _ in range(1 if device.type == "cpu" else 2):  # the first on a GPU compiles kernels
        started = time.perf_counter()
        quantize_part(weight, None, trial, "trial", statistics=statistics)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
    return seconds


def expected_time(plan: ModelPlan, spec: QuantSpec, device: torch.device) -> list[str]:
    """A line for the user; none where a run is over in seconds."""
    seconds = estimate_seconds(plan, spec, device)
    return [f"about {duration(seconds)} on this machine"] if seconds else []


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
