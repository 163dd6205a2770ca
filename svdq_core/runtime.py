"""Which compute mode runs a model, and how that is said to the user."""

import torch

from ..kernels.linear import COMPUTE_MODES, choose_compute
from .model import QuantizedModel

COMPUTE_CHOICES = ("auto", *COMPUTE_MODES)


def resolve_compute(choice: str, precision: str, device: torch.device) -> tuple[str, str]:
    """The compute mode behind a user's choice, and the reason in words.

    Args:
        choice: one of COMPUTE_CHOICES. precision: "int4" or "nvfp4".
    """
    if choice == "auto":
        return choose_compute(precision, device)
    return choice, "chosen by the user"


def describe_model(name: str, model: QuantizedModel, compute: str, reason: str) -> str:
    """One line about a loaded file: what it is, its size, and what runs it."""
    ranks = model.ranks
    rank = (
        "no low-rank branch" if not any(ranks) else "rank " + " to ".join(str(r) for r in sorted({ranks[0], ranks[-1]}))
    )
    return (
        f"{name}: {model.architecture.title}, {model.precision}, {rank}, {len(model.layers)} quantized layers, "
        f"{model.nbytes / 2**30:.2f} GiB; compute {compute} ({reason})"
    )
