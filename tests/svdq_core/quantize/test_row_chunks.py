"""Large weights are worked on in chunks of rows."""

import pytest
import torch
from planted_layers import draw_tokens, draw_weight

from svdquant_pack.svdq_core.quantize import InputStatistics, LayerPlan, QuantSpec, quantize_layer


@pytest.mark.parametrize("precision", ["int4", "nvfp4", "int8"])
def test_rows_may_be_worked_on_in_chunks(precision, monkeypatch):
    weight, tokens = draw_weight(256, 384), draw_tokens(512, 384, after_gelu=True)
    plan, spec = (
        LayerPlan.whole(256, 384, after_gelu=True),
        QuantSpec(precision=precision, activations="w4a8", method="best"),
    )
    statistics = InputStatistics.from_tokens(tokens)
    whole, reports = quantize_layer(weight, None, plan, spec, "layer", statistics=statistics)
    for module in ("gptq", "one_layer", "problem", "round"):
        monkeypatch.setattr(f"svdquant_pack.svdq_core.quantize.{module}.ROWS", 96)
    chunked, others = quantize_layer(weight, None, plan, spec, "layer", statistics=statistics)
    assert others[0].relative_error == pytest.approx(reports[0].relative_error, rel=0.01)
    (a,), (b,) = whole.parts, chunked.parts
    assert (a["qweight"] != b["qweight"]).float().mean() < 0.1  # sums of other sizes are rounded otherwise
    torch.testing.assert_close(chunked.bias, whole.bias, atol=0.05, rtol=0.05)
