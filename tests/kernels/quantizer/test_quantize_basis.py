"""inverse_root: orthonormal columns, also where some are nearly the same, and nothing infinite for zeros."""

import pytest
import torch

from svdquant_pack.kernels.quantizer.quantize_basis import inverse_root


@pytest.mark.parametrize("size", [1, 16, 32, 48, 64])
def test_columns_become_orthonormal(size, device):
    g = torch.Generator().manual_seed(0)
    columns = torch.randn(200, size, generator=g, dtype=torch.float64) * torch.logspace(
        0, -3, size, dtype=torch.float64
    )
    columns[:, -1] += 10 * columns[:, 0]  # two nearly parallel ones
    columns = columns.to(device)
    found = inverse_root(columns.T @ columns, 1e-14)
    assert torch.equal(found, found.triu())
    basis = columns @ found
    torch.testing.assert_close(basis.T @ basis, torch.eye(size, dtype=torch.float64, device=device), rtol=0, atol=1e-5)
    wanted = torch.linalg.inv(torch.linalg.cholesky(columns.T @ columns)).T
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_several_at_once_are_the_same_as_each_alone(device):
    g = torch.Generator().manual_seed(1)
    columns = torch.randn(2, 3, 100, 24, generator=g, dtype=torch.float64).to(device)
    grams = columns.mT @ columns
    found = inverse_root(grams, 1e-11)
    assert found.shape == grams.shape
    for one, gram in zip(found.flatten(0, 1), grams.flatten(0, 1), strict=True):
        assert torch.equal(one, inverse_root(gram, 1e-11))


def test_zeros_stay_finite(device):
    found = inverse_root(torch.zeros(32, 32, dtype=torch.float64, device=device), 1e-11)
    assert torch.isfinite(found).all()


def test_large_ones_are_refused(device):
    with pytest.raises(ValueError, match="65 columns"):
        inverse_root(torch.eye(65, dtype=torch.float64, device=device), 1e-11)
