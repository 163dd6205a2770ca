"""How long a run will take, from one small layer on the same device."""

import time

import torch

from .model_plan import ModelPlan
from .one_layer import quantize_part
from .spec import QuantSpec
from .statistics import InputStatistics, named_generator

TRIAL_TOKENS = 512
TRIAL_SIDE = {"cuda": 3072, "cpu": 1024}  # of the layer: a GPU is no faster with a smaller one
BEST_OVER_FAST = 4.0  # measured on an H200 at the sizes of FLUX.1: 41 and 160 s
FORWARD = 1.3  # reading, the forward on noise and writing, beside the layers themselves
WORTH_A_TRIAL = 1 << 26  # weights; less takes seconds


def estimate_seconds(plan: ModelPlan, spec: QuantSpec, device: torch.device) -> float:
    """Expected seconds for a plan; 0 where it is hardly worth asking."""
    weights = sum(layer.weights for layer in plan.quantized if not layer.is_modulation)
    if weights < WORTH_A_TRIAL:
        return 0.0
    side = TRIAL_SIDE.get(device.type, 1024)
    generator = named_generator(0, "trial")
    weight = torch.randn(side, side, generator=generator).to(device)
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
    factor = FORWARD * (BEST_OVER_FAST if spec.method == "best" else 1.0)
    return factor * seconds * weights / side**2


def expected_time(plan: ModelPlan, spec: QuantSpec, device: torch.device) -> list[str]:
    """A line for the user; none where a run is over in seconds."""
    seconds = estimate_seconds(plan, spec, device)
    return [f"about {duration(seconds)} on this machine"] if seconds else []


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
