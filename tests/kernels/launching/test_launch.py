"""launch: what decides which compiled kernel a launch needs, no more and no less."""

import pytest
import torch

pytest.importorskip("triton")

from svdquant_pack.kernels.launching import launch as launching

CONSTANTS = {"BLOCK": 64}


class Kernel:
    """What the key asks of a kernel."""

    arg_names = ("x_ptr", "M", "N", "BLOCK")
    do_not_specialize = ("M",)


KERNEL = Kernel()


def key(tensor, M=64, N=64):
    return launching.launch_key(KERNEL, (tensor, M, N), CONSTANTS)


def test_a_tensor_beyond_2_gib_has_a_kernel_of_its_own_on_amd_gpus(monkeypatch):
    """Triton compiles 32-bit offsets for memory up to 2 GiB there; rows beyond would not be written."""
    small = torch.empty(4, 16, dtype=torch.bfloat16, device="meta")
    large = torch.empty(50688, 21504, dtype=torch.bfloat16, device="meta")  # three pictures of 2048 x 2048, linear1
    assert key(small) == key(large), "on NVIDIA GPUs the same kernel"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert key(small) != key(large)
    assert key(large) != key(large[:4]) or large[:4].untyped_storage().nbytes() == large.untyped_storage().nbytes()
    assert key(small) == key(torch.empty(4, 16, dtype=torch.bfloat16, device="meta"))


def test_sizes_share_a_key_as_triton_shares_kernels():
    x = torch.empty(4, 16)
    assert len({key(x, M=M) for M in range(1, 3000, 7)}) == 1, "M is not compiled for"
    assert len({key(x, N=N) for N in (32, 48, 4096, 12288)}) == 1, "multiples of 16"
    assert len({key(x, N=N) for N in (3, 33, 4097)}) == 1, "others"
    assert len({key(x, N=N) for N in (1, 2, 16, 2**31, 2**31 + 1)}) == 5
    assert key(x, M=2**31) != key(x), "64 bits"


def test_dtypes_constants_and_alignment_count():
    x = torch.empty(4, 16)
    assert key(x) != key(x.half())
    assert launching.launch_key(KERNEL, (x, 64, 64), {"BLOCK": 32}) != key(x)
    assert key(torch.empty(9)[1:]) is None, "left to Triton"
