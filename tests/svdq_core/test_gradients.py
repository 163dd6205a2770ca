"""Gradients through quantized layers and what stands between them: right where they are asked for, and said."""

import logging
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from problems import int4_layer

from svdquant_pack.kernels import ladder
from svdquant_pack.kernels.launching import replay
from svdquant_pack.svdq_core import row_ops
from svdquant_pack.svdq_core.apply_layer import apply_blob, dense_weight
from svdquant_pack.svdq_core.blob import to_blob
from svdquant_pack.svdq_core.layer import Part, QuantizedLayer

K, N = 256, 128


def draw_layer(*columns: tuple[int, int]) -> QuantizedLayer:
    """Parts on columns, float32."""
    parts = [
        Part("int4", (0, N), span, False, int4_layer(N, span[1] - span[0], 16, torch.float32, torch.device("cpu")))
        for span in columns
    ]
    return QuantizedLayer(columns[-1][1], N, tuple(parts), torch.randn(N))


@pytest.mark.parametrize("spans", [((0, K),), ((0, 64), (64, K))], ids=["one part", "two on columns"])
@pytest.mark.parametrize("compute", ["w4a4", "w4a8", "w4a16"])
def test_the_gradient_is_that_of_the_dense_layer(spans, compute):
    layer = draw_layer(*spans)
    blob, layout = to_blob(layer)
    x, weight = torch.randn(1, 16, K, requires_grad=True), dense_weight(layer)
    out = apply_blob(blob, layout.to_json(), layer.bias, x, compute)
    torch.testing.assert_close(out, x @ weight.T + layer.bias, rtol=1e-4, atol=1e-3)
    gradient = torch.randn_like(out)
    out.backward(gradient)
    torch.testing.assert_close(x.grad, gradient @ weight, rtol=1e-4, atol=1e-3)


def test_what_was_recorded_is_not_issued_again_for_a_gradient(monkeypatch, caplog):
    layer = draw_layer((0, K))
    blob, layout = to_blob(layer)
    monkeypatch.setattr(replay, "records_on", lambda _device: True)
    monkeypatch.setattr(replay.Replay, "__call__", lambda _self, _sources: pytest.fail("issued by address"))
    monkeypatch.setattr(ladder, "_said", set())
    with caplog.at_level(logging.INFO, logger="svdquant"):
        for _ in range(2):
            x = torch.randn(1, 16, K, requires_grad=True)
            apply_blob(blob, layout.to_json(), layer.bias, x, "w4a8").sum().backward()
    assert [record.message.split(":")[0] for record in caplog.records] == ["A gradient is asked for"]


def test_factors_of_a_lora_get_theirs():
    layer = draw_layer((0, K))
    blob, layout = to_blob(layer)
    down, up = (torch.randn(n, 4).div(8).requires_grad_() for n in (K, N))
    x = torch.randn(1, 16, K)
    apply_blob(blob, layout.to_json(), layer.bias, x, "w4a4", lora_down=down, lora_up=up).sum().backward()
    torch.testing.assert_close(up.grad, (x @ down.detach()).sum((0, 1)).expand(N, 4), rtol=1e-4, atol=1e-4)


def test_without_autograd_nothing_changes():
    layer = draw_layer((0, K))
    blob, layout = to_blob(layer)
    x = torch.randn(1, 16, K, requires_grad=True)
    with torch.no_grad():
        found = apply_blob(blob, layout.to_json(), layer.bias, x, "w4a4")
    assert torch.equal(found, apply_blob(blob, layout.to_json(), layer.bias, x.detach(), "w4a4"))


def test_under_compile_it_is_refused_in_a_sentence():
    torch._dynamo.reset()
    layer = draw_layer((0, K))
    blob, layout = to_blob(layer)
    text = layout.to_json()
    compiled = torch.compile(lambda x: apply_blob(blob, text, layer.bias, x, "w4a8"), backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"compute no gradients under torch\.compile"):
        compiled(torch.randn(1, 16, K, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("name", ["gelu_of_rows", "rms_norm", "layer_norm"])
def test_norms_and_gelus_leave_it_to_torch(name, monkeypatch):
    monkeypatch.setattr(row_ops, "why_no_triton", lambda _device: None)
    monkeypatch.setattr(row_ops, "descend", lambda _device, _steps: pytest.fail("a kernel"))
    x = torch.randn(4, 128, requires_grad=True)
    more = {"gelu_of_rows": (), "rms_norm": (torch.ones(64), 1e-6), "layer_norm": (1e-6,)}[name]
    getattr(row_ops, name)(x[:, :64], *more).sum().backward()
    assert x.grad is not None and x.grad[:, :64].abs().sum() > 0
