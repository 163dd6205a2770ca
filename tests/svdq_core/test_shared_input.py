"""Layers that read one tensor: quantized once, the bits of each layer alone, and never what another tensor was."""

import gc
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from problems import awq_layer, int4_layer, int8_layer, nvfp4_layer

from svdquant_pack.kernels import reference
from svdquant_pack.kernels.launching import replay
from svdquant_pack.svdq_core.apply_layer import apply_blob
from svdquant_pack.svdq_core.blob import to_blob
from svdquant_pack.svdq_core.layer import Part, QuantizedLayer
from svdquant_pack.svdq_core.shared_input import SharedInput

K = 256
MAKE = {"int4": int4_layer, "nvfp4": nvfp4_layer, "int8": int8_layer, "awq": awq_layer}
QUANTIZERS = ("quantize_act_int4", "quantize_act_int8", "quantize_act_nvfp4")


def draw_layers(scheme="int4", names=("qkv", "qkv", "qkv"), device="cpu", outs=(128, 64, 64)):
    """Layers of those input names, with one smoothing and one proj_down: (blob, layout, bias) each."""
    shared, drawn = None, []
    for name, N in zip(names, outs, strict=True):
        tensors = MAKE[scheme](N, K, 16, torch.bfloat16, torch.device(device))
        shared = shared or {n: tensors[n] for n in ("smooth_factor", "proj_down") if n in tensors}
        part = Part(scheme, (0, N), (0, K), False, {**tensors, **shared})
        layer = QuantizedLayer(K, N, (part,), torch.randn(N, device=device).bfloat16(), input=name)
        blob, layout = to_blob(layer)
        drawn.append((blob, layout.to_json(), layer.bias))
    return drawn


@pytest.fixture
def count(monkeypatch):
    """How often activations were quantized."""
    calls = []
    for name in QUANTIZERS:
        real = getattr(reference, name)
        monkeypatch.setattr(reference, name, lambda *a, real=real: calls.append(1) or real(*a))
    return calls


@pytest.mark.parametrize("scheme", ["int4", "nvfp4", "int8"])
@pytest.mark.parametrize("compute", ["w4a4", "w4a8"])
@pytest.mark.parametrize(
    "gelu", [{}, {"gelu": "input"}, {"gelu": "output", "gelu_from": 16}], ids=["", "input", "output"]
)
def test_one_quantization_and_the_bits_of_three(scheme, compute, gelu, count):
    layers, slot, x = draw_layers(scheme), SharedInput(), torch.randn(2, 5, K).bfloat16()
    alone = [apply_blob(*layer, x, compute, **gelu) for layer in layers]
    count.clear()
    together = [apply_blob(*layer, x, compute, **gelu, shared=slot) for layer in layers]
    assert len(count) == 1
    for found, wanted in zip(together, alone, strict=True):
        assert found.shape == wanted.shape and torch.equal(found, wanted)


def test_what_runs_alone_on_the_cpu_stays_right(count):
    for scheme, compute in (("int4", "w4a16"), ("awq", "w4a4")):
        layers, slot, x = draw_layers(scheme), SharedInput(), torch.randn(2, 5, K).bfloat16()
        for layer in layers:
            assert torch.equal(apply_blob(*layer, x, compute, shared=slot), apply_blob(*layer, x, compute))


@pytest.mark.parametrize("change", ["tensor", "name", "mode", "gelu", "another layer between", "lora", "no name"])
def test_anything_else_is_quantized_anew(change, count):
    names = {"name": ("qkv", "other", "qkv"), "no name": ("", "", "")}.get(change, ("qkv",) * 3)
    layers, slot, x = draw_layers(names=names), SharedInput(), torch.randn(1, 5, K).bfloat16()
    options = [(x, "w4a8", {})] * 3
    down, up = torch.randn(K, 16).bfloat16() / 16, torch.randn(64, 16).bfloat16()
    options[1] = {
        "tensor": (x.clone(), "w4a8", {}),
        "mode": (x, "w4a4", {}),
        "gelu": (x, "w4a8", {"gelu": "input"}),
        "lora": (x, "w4a8", {"lora_down": down, "lora_up": up}),
    }.get(change, options[1])
    if change == "another layer between":
        layers[1], options[1] = draw_layers(names=("",), outs=(64,))[0], (torch.randn(1, 3, K).bfloat16(), "w4a8", {})
    alone = [apply_blob(*one, y, mode, **more) for one, (y, mode, more) in zip(layers, options, strict=True)]
    count.clear()
    for one, (y, mode, more), wanted in zip(layers, options, alone, strict=True):
        assert torch.equal(apply_blob(*one, y, mode, **more, shared=slot), wanted)
    assert len(count) == 3


def test_a_tensor_that_died_is_not_taken_for_one_at_its_address():
    layers, slot = draw_layers(), SharedInput()
    for _ in range(5):
        x = torch.randn(1, 5, K).bfloat16()
        assert torch.equal(apply_blob(*layers[0], x, "w4a8", shared=slot), apply_blob(*layers[0], x, "w4a8"))
        del x
        gc.collect()
    assert slot._x is not None and slot._x() is None, "the slot keeps no activations"


def test_two_models_have_two_slots():
    ours, theirs = draw_layers(), draw_layers()
    x, slots = torch.randn(1, 5, K).bfloat16(), [SharedInput()]
    slots.append(deepcopy(slots[0]))
    assert slots[0] is not slots[1]
    for _ in range(2):
        for layers, slot in zip((ours, theirs), slots, strict=True):
            assert torch.equal(apply_blob(*layers[0], x, "w4a8", shared=slot), apply_blob(*layers[0], x, "w4a8"))


def test_what_fails_together_runs_alone(monkeypatch):
    layers, slot, x = draw_layers(), SharedInput(), torch.randn(1, 5, K).bfloat16()
    wanted = apply_blob(*layers[0], x, "w4a8")
    monkeypatch.setattr(SharedInput, "take", lambda *_: (_ for _ in ()).throw(AttributeError("a Triton of today")))
    assert torch.equal(apply_blob(*layers[0], x, "w4a8", shared=slot), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", ["int4", "nvfp4", "int8"])
@pytest.mark.parametrize("compute", ["w4a4", "w4a8", "w4a16"])
@pytest.mark.parametrize("tokens", [2, 300])
def test_on_a_gpu_recorded_and_not(scheme, compute, tokens, monkeypatch):
    monkeypatch.setattr(replay._thread, "known", {})
    layers, slot = draw_layers(scheme, device="cuda"), SharedInput()
    for _ in range(4):
        x = torch.randn(1, tokens, K, device="cuda").bfloat16()
        for layer in layers:
            monkeypatch.setattr(replay, "RECORDS", False)
            wanted = apply_blob(*layer, x, compute)
            monkeypatch.setattr(replay, "RECORDS", True)
            assert torch.equal(apply_blob(*layer, x, compute, shared=slot), wanted)
    assert not replay._refused


def test_the_name_of_the_input_is_absent_where_there_is_none():
    layer = QuantizedLayer(
        K, 64, (Part("int4", (0, 64), (0, K), False, int4_layer(64, K, 16, torch.half, torch.device("cpu"))),)
    )
    assert '"input"' not in to_blob(layer)[1].to_json()
    assert to_blob(replace(layer, input="qkv"))[1].input == "qkv"
