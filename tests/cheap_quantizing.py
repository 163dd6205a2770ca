"""Settings with which quantizing a tiny model takes a second: a smaller search, less noise."""

from svdquant_pack.nodes.host.quantize import block_inputs
from svdquant_pack.svdq_core.quantize import smooth
from svdquant_pack.svdq_core.quantize.smooth import Exponents
from svdquant_pack.svdq_core.quantize.spec import QuantSpec

SPEC = QuantSpec(rank=16, score_tokens=64)


def make_cheap(monkeypatch) -> None:
    """What decides is how good the smoothing is, not whether it is there: two candidates instead of twenty."""
    monkeypatch.setattr(smooth, "MEASURED", (Exponents("rms", 0.0, 0.0), Exponents("rms", 0.65, 0.35)))
    monkeypatch.setattr(smooth, "STEPS", ())
    for name, value in (("PICTURES", 2), ("PICTURE_SIDE", 16), ("VIDEO_SIDE", 8), ("FRAMES", 2), ("TEXT_TOKENS", 16)):
        monkeypatch.setattr(block_inputs, name, value)
