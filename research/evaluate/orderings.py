"""Which of two ways is nearer to 16 bits, as the paper and its authors' tables have it, and whether it holds here."""

from dataclasses import dataclass

from .findings import Findings

PACK = "pack_best_int4_w4a4_r32_calibrated"


@dataclass(frozen=True)
class Ordering:
    """One claim: the first way has the smaller latent error.

    Args:
        source: where it stands.
        nearer, farther: names of ways.
        steps: sampling steps; the paper's FLUX.1-dev takes 50, schnell 4.
        reason: why a model as small as this one may not show it; printed only where it does not.
    """

    source: str
    nearer: str
    farther: str
    steps: int = 20
    reason: str = ""


# Measured on the shipped model: mean over the 22 Linears of its blocks that get a branch.
FLAT = (
    "flat spectra: the 32 largest of 256 singular values hold 36 % of the weights' energy (the model was trained with "
    "Muon, whose updates have equal singular values), so a branch takes little"
)
NARROW = (
    "a scale for a whole channel or token serves 256 to 1280 values here and 3072 to 15360 in FLUX.1, so doing without "
    "groups costs less"
)
PAPER = "paper, table 1"
REPLY = "authors' reply to reviewers"
CODE = "DeepCompressor's tables"
ORDERINGS = (
    Ordering(PAPER, "paper_w8a8", "paper_w4a4"),
    Ordering(PAPER, "paper_w8a8", "nf4_w4a16"),
    Ordering(PAPER + ", FLUX.1-dev", "paper_w4a4", "nf4_w4a16", reason=f"{FLAT}; and NF4 rounds no activations"),
    Ordering(PAPER + ", FLUX.1-schnell", "nf4_w4a16", "paper_w4a4", 4),
    Ordering(PAPER, "paper_nvfp4", "paper_w4a4"),
    Ordering(CODE, "nearest_nvfp4", "nearest_w4a4"),
    Ordering(CODE, "paper_w4a4", "nearest_w4a4", reason=FLAT),
    Ordering(CODE, "paper_nvfp4", "nearest_nvfp4"),
    Ordering(CODE, "deepcompressor_gptq_w4a4", "deepcompressor_w4a4"),
    Ordering(REPLY, "smoothquant_w4a4", "nearest_w4a4"),
    Ordering(REPLY, "hadamard_w4a4", "smoothquant_w4a4"),
    Ordering(REPLY, "paper_w4a4", "hadamard_w4a4", reason=FLAT),
    Ordering(
        REPLY,
        "lorc_w4a4",
        "nearest_w4a4",
        reason="rounding errors have flat spectra, as the paper says itself: a branch takes little of them",
    ),
    Ordering(REPLY, "paper_w4a4", "lorc_w4a4", reason=FLAT),
    Ordering(REPLY, "paper_w4a4", "nearest_w6a6", reason=NARROW),
    Ordering(REPLY, "paper_w4a4", "paper_w5a5", reason=NARROW),
    Ordering(REPLY, "paper_w3a4", "smoothquant_w3a4", reason=FLAT),
    Ordering(REPLY, "paper_w3a3", "smoothquant_w3a3", reason=FLAT),
    Ordering(REPLY, "paper_w4a4_r64", "paper_w4a4", reason=FLAT),
    Ordering(REPLY, "paper_w4a4", "paper_w4a4_r16", reason=FLAT),
    Ordering("this pack", PACK, "deepcompressor_gptq_w4a4"),
    Ordering("this pack", "pack_best_int4_w4a8_r32_calibrated", PACK),
    Ordering("this pack", "pack_best_nvfp4_w4a4_r32_calibrated", "deepcompressor_gptq_nvfp4"),
    Ordering("this pack", "pack_fast_int4_w4a4_r32_no_data", "paper_w4a4"),
)


def verdict(findings: Findings, ordering: Ordering) -> tuple[str, str] | None:
    """(verdict, figure): whether the paired difference of latent errors is above 0; None where one is missing."""
    found = findings.difference(ordering.nearer, ordering.farther, ordering.steps)
    if found is None:
        return None
    figure = f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    if found.low > 0:
        return "holds", figure
    return ("reversed" if found.high < 0 else "no clear difference"), figure
