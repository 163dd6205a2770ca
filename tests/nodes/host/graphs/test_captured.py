"""What a capture may not do is found out before it begins."""

import warnings

import pytest
import torch

from svdquant_pack.nodes.host.graphs.captured import CudaGraph, WaitsError, no_waiting


@pytest.fixture
def modes(monkeypatch):
    """torch's way to report waiting, noted; without a GPU it does not exist."""
    found = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: found[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", found.append)
    return found


def test_waiting_is_noticed(modes):
    with pytest.raises(WaitsError, match="called a synchronizing CUDA operation"), no_waiting():
        warnings.warn("called a synchronizing CUDA operation (Triggered internally at ...)", stacklevel=1)
    assert modes == ["default", "warn", "default"]


@pytest.mark.parametrize(
    "said",
    [
        "something else",
        # torch's remark on the mode itself, once in a process
        "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations",
    ],
)
def test_other_warnings_are_no_matter(modes, said):
    with no_waiting():
        warnings.warn(said, stacklevel=1)
    assert modes[-1] == "default"


def test_errors_pass_and_the_mode_is_put_back(modes):
    with pytest.raises(KeyError), no_waiting():
        raise KeyError("sample_sigmas")
    assert modes[-1] == "default"


@pytest.mark.gpu
def test_a_call_that_waits_is_not_captured():
    x = torch.randn(64, device="cuda")
    with pytest.raises(WaitsError):
        CudaGraph(x.device).capture(lambda: x * float(x.sum()))
    graph = CudaGraph(x.device)
    out = graph.capture(lambda: x * 2)
    x.fill_(3)
    graph.replay()
    assert torch.equal(out, torch.full_like(out, 6))


@pytest.mark.gpu
def test_an_error_while_it_is_captured_leaves_the_gpu_usable():
    x, calls = torch.randn(64, device="cuda"), []

    def compute():
        y = x * 2
        calls.append(1)
        if len(calls) == 2:  # not while it is tried
            raise KeyError("sample_sigmas")
        return y

    with pytest.raises(KeyError):
        CudaGraph(x.device).capture(compute)
    torch.cuda.synchronize()
    assert torch.equal(x + 0, x)
