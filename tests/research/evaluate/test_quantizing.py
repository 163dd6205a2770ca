"""Ways without a recording get inputs from noise; all others what was recorded on captions."""

import pytest
import torch

from svdquant_pack.research.evaluate import quantizing
from svdquant_pack.research.evaluate.methods import ways
from svdquant_pack.research.evaluate.recorded_inputs import Source


@pytest.mark.parametrize("kind", ["pack", "kernels"])
def test_what_is_not_calibrated_sees_noise(monkeypatch, kind):
    captions, noise = Source({}, {}), Source({"noise": torch.zeros(1)}, {})
    seen = []
    monkeypatch.setattr(quantizing, "quantize_source", lambda source, spec: seen.append((source, spec)) or {})
    mine = [way for way in ways() if way.kind == kind]
    assert any(way.method == "best" and not way.is_calibrated for way in mine) or kind == "kernels"
    for way in mine:
        quantizing.quantized_layers(way, captions, noise)
        source, spec = seen[-1]
        assert source is (captions if way.is_calibrated else noise)
        assert (spec.method, spec.rank, spec.precision) == (way.method, way.rank, way.precision)
