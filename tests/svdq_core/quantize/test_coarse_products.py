"""Settings of torch come back as they were, also after an error, and nothing changes on a CPU."""

import pytest
import torch

from svdquant_pack.svdq_core.quantize.coarse_products import TF32, coarse_products


def test_what_was_set_comes_back():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ZeroDivisionError), coarse_products(torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == TF32
        1 / 0  # noqa: B018
    assert torch.get_float32_matmul_precision() == before


def test_a_cpu_keeps_its_bits():
    before = torch.get_float32_matmul_precision()
    with coarse_products(torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == before


def test_where_torch_refuses_products_stay_exact(monkeypatch):
    def refuse(*_):
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "set_float32_matmul_precision", refuse)
    with coarse_products(torch.device("cuda")):
        pass
    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    with coarse_products(torch.device("cuda")):
        pass
