"""Plain torch: every mode against the reference, and torch's int8 product where it can be used."""

import pytest
import torch
from compare import assert_close
from layer_calls import layer_call, on_reference
from problems import activations, awq_layer, int4_layer, int8_layer, nvfp4_layer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from svdquant_pack.kernels.layer_call import COMPUTE_MODES
from svdquant_pack.kernels.paths import plain_torch

LAYERS = {"int4": int4_layer, "nvfp4": nvfp4_layer, "int8": int8_layer}


@pytest.mark.parametrize("compute", COMPUTE_MODES)
@pytest.mark.parametrize("scheme", LAYERS)
@pytest.mark.parametrize(("act_unsigned", "gelu"), [(False, False), (True, True)])
def test_it_matches_the_reference(compute, scheme, act_unsigned, gelu, device):
    x, tensors = activations(19, 192, torch.float16, device), LAYERS[scheme](72, 192, 16, torch.float16, device)
    bias = torch.randn(72, device=device).half()
    call = layer_call(x, tensors, scheme, compute, bias=bias, act_unsigned=act_unsigned, gelu=gelu)
    assert_close(
        plain_torch.compute(call), on_reference(call), op="gemm_w4a8" if compute == "w4a8" else "16-bit product"
    )


@pytest.mark.parametrize("has_lora", [False, True])
def test_modulation_layers(has_lora, dtype, device):
    x, bias = torch.randn(3, 192, device=device).to(dtype), torch.randn(72, device=device).to(dtype)
    drawn = torch.randn(192, 8, device=device) / 14, torch.randn(72, 8, device=device)
    lora = tuple(t.to(dtype) for t in drawn) if has_lora else None
    call = layer_call(x, awq_layer(72, 192, 0, dtype, device), "awq", "w4a16", bias=bias, lora=lora)
    assert_close(plain_torch.compute(call), on_reference(call), op="16-bit product")


def test_torch_int_mm_is_used_where_it_can_be(monkeypatch, device):
    """17 rows and more go through torch._int_mm, fewer through the reference; both give the same rows."""
    tensors = int4_layer(72, 192, 16, torch.float16, device)
    x, calls = activations(20, 192, torch.float16, device), []
    int_mm = torch._int_mm
    monkeypatch.setattr(plain_torch.torch, "_int_mm", lambda a, b: calls.append(1) or int_mm(a, b))
    many, few = (plain_torch.compute(layer_call(rows, tensors, "int4", "w4a8")) for rows in (x, x[:5]))
    assert len(calls) == 1
    assert_close(many[:5], few, op="gemm_w4a8")


def test_blocks_of_rows_come_to_the_whole(monkeypatch, device):
    x, bias = activations(19, 192, torch.float16, device), torch.randn(72, device=device).half()
    for scheme, make in LAYERS.items():
        call = layer_call(x, make(72, 192, 16, torch.float16, device), scheme, "w4a16", bias=bias)
        whole = plain_torch.compute(call)
        with monkeypatch.context() as patch:
            patch.setattr(plain_torch, "ROWS", 16)
            assert_close(plain_torch.compute(call), whole, op="gemm_w4a16")


class Moved(TorchDispatchMode):
    """Counts the bytes that operations read and write, views and scalars apart."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs)), tree_leaves(out)
        read, written = ([t for t in side if isinstance(t, torch.Tensor)] for side in leaves)
        places = {t.untyped_storage().data_ptr() for t in read}
        if function._schema.is_mutable or not all(t.untyped_storage().data_ptr() in places for t in written):
            self.bytes += sum(t.nbytes for t in (*read, *written))
        return out


def test_below_kernels_16_bit_activations_move_the_fewest_bytes():
    """A sixteenth of linear1 of FLUX.1; 4-bit weights."""
    tensors = int4_layer(1344, 768, 32, torch.bfloat16, torch.device("cpu"))
    x, moved = torch.randn(1152, 768).bfloat16(), {}
    for mode in COMPUTE_MODES:
        with torch.inference_mode(), Moved() as counter:
            plain_torch.compute(layer_call(x, tensors, "int4", mode))
        moved[mode] = counter.bytes
    assert moved["w4a16"] < moved["w4a8"] / 2 and moved["w4a16"] < moved["w4a4"] / 2, moved
