"""awq_linear: every step of its ladder against the reference, with LoRAs and without, alone and compiled."""

from importlib import import_module

import pytest
import torch
from compare import assert_close, assert_same
from problems import awq_layer

from svdquant_pack.kernels import awq_linear as linear_awq
from svdquant_pack.kernels import ladder, reference
from svdquant_pack.kernels.awq_linear import awq_linear


def triton_path():
    pytest.importorskip("triton")
    return import_module("svdquant_pack.kernels.triton_path")


def problem(M, N, K, has_lora, dtype, device):
    """x, tensors, bias and LoRA factors, and what they come to."""
    x, bias = torch.randn(M, K, device=device).to(dtype), torch.randn(N, device=device).to(dtype)
    tensors = awq_layer(N, K, 0, dtype, device)
    wanted = reference.gemm_awq(x, tensors["qweight"], tensors["wscales"], tensors["wzeros"], bias)
    if not has_lora:
        return (x, tensors, bias), wanted
    down, up = torch.randn(K, 8, device=device) / K**0.5, torch.randn(N, 8, device=device)
    down, up = down.to(dtype), up.to(dtype)
    return (x, tensors, bias, down, up), wanted + ((x.float() @ down.float()) @ up.float().T).to(dtype)


@pytest.mark.parametrize("M", [1, 3, 19])
@pytest.mark.parametrize("has_lora", [False, True])
def test_small_layers(M, has_lora, dtype, device):
    arguments, wanted = problem(M, 72, 192, has_lora, dtype, device)
    assert_close(awq_linear(*arguments), wanted, op="16-bit product")


@pytest.mark.parametrize("M", [1, 3, 19])
@pytest.mark.parametrize("has_lora", [False, True])
def test_every_step_of_the_ladder(M, has_lora, dtype, device):
    (x, tensors, bias, *lora), wanted = problem(M, 72, 192, has_lora, dtype, device)
    steps = triton_path().steps_awq(x, tensors, bias, *(lora or (None, None)))
    assert len(steps) == (2 if M <= 4 else 1)
    for _, run in steps:
        assert_close(run(), wanted, op="16-bit product")


@pytest.mark.parametrize("M", [1, 19])
def test_activations_that_want_gradients_are_taken(M, dtype, device):
    (x, tensors, bias, *lora), wanted = problem(M, 72, 192, True, dtype, device)
    wanting = tensors, bias, *(t.requires_grad_() for t in lora)
    for _, run in triton_path().steps_awq(x.requires_grad_(), *wanting):
        assert_close(run(), wanted.detach(), op="16-bit product")


@pytest.mark.gpu
@pytest.mark.parametrize("M", [1, 4, 300])
@pytest.mark.parametrize("has_lora", [False, True])
def test_real_layers(M, has_lora, dtype, device):
    arguments, wanted = problem(M, 18432, 3072, has_lora, dtype, device)
    assert_close(awq_linear(*arguments), wanted, op="16-bit product")
    assert not ladder._broken, "a step was left behind, so plain torch was compared with itself"


@pytest.mark.parametrize("has_lora", [False, True])
def test_one_opaque_call_under_compile(has_lora, dtype, device):
    (x, *others), _ = problem(3, 72, 192, has_lora, dtype, device)
    graphs = []

    def backend(graph, _inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    compiled = torch.compile(lambda x: awq_linear(x, *others), fullgraph=True, backend=backend)
    assert_same(compiled(x), awq_linear(x, *others))
    assert graphs == [["svdquant.awq_linear.default"]]


def test_the_fake_has_the_shape_of_the_result(dtype, device):
    (x, tensors, bias, down, up), _ = problem(3, 72, 192, True, dtype, device)
    arguments = x, tensors["qweight"], tensors["wscales"], tensors["wzeros"], bias, down, up
    torch.library.opcheck(linear_awq._awq_linear_op, arguments, test_utils="test_faketensor")
