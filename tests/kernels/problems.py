"""Random layers for kernel tests, on the device where kernels run."""

import torch
from torch import Tensor

SMALL = [(1, 64, 64), (19, 88, 192), (33, 72, 1152)]  # M, N, K: smallest, odd, PixArt's K
REAL = [(1, 3072, 3072), (63, 1152, 1152), (4625, 3072, 3072), (512, 3072, 12288), (300, 9216, 3072)]


def activations(M: int, K: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(M, K) of dtype with a row of zeros, a huge and a tiny row and one outlier channel, as far as M allows."""
    x = torch.randn(M, K, device=device)
    x[:, K // 3] *= 20
    if M > 4:
        x[1], x[2], x[3] = 0, x[2] * 1e3, x[3] * 1e-3
    return x.to(dtype)


def branch(N: int, K: int, R: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """smooth_factor (K,), proj_down (K, R), proj_up (N, R)."""
    smooth_factor = torch.rand(K, device=device) + 0.5
    proj_down, proj_up = torch.randn(K, R, device=device) / K**0.5, torch.randn(N, R, device=device)
    return smooth_factor.to(dtype), proj_down.to(dtype), proj_up.to(dtype)


def packed_codes(rows: int, K: int, device: torch.device) -> Tensor:
    """(rows, K//2) int8 with every 4-bit code, -8 included."""
    return torch.randint(-128, 128, (rows, K // 2), device=device, dtype=torch.int16).to(torch.int8)


def scales(rows: int, K: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(K//64, rows) of dtype."""
    return (torch.rand(K // 64, rows, device=device) * 0.1 + 0.01).to(dtype)


def e4m3_scales(rows: int, K: int, device: torch.device) -> Tensor:
    """(K//16, rows) e4m3, subnormal ones included."""
    values = torch.rand(K // 16, rows, device=device) / 8
    values.view(-1)[::7] = 0.005
    return values.to(torch.float8_e4m3fn)


def int4_layer(N: int, K: int, R: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """The tensors of an int4 part."""
    smooth_factor, proj_down, proj_up = branch(N, K, R, dtype, device)
    return {
        "qweight": packed_codes(N, K, device),
        "wscales": scales(N, K, dtype, device),
        "smooth_factor": smooth_factor,
        "proj_down": proj_down,
        "proj_up": proj_up,
    }


def nvfp4_layer(N: int, K: int, R: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """The tensors of an nvfp4 part."""
    wcscales = (torch.rand(N, device=device) + 0.5).to(dtype)
    return {**int4_layer(N, K, R, dtype, device), "wscales": e4m3_scales(N, K, device), "wcscales": wcscales}


def int8_layer(N: int, K: int, R: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """The tensors of an int8 part."""
    codes = torch.randint(-127, 128, (N, K), device=device, dtype=torch.int16).to(torch.int8)
    wscales = (torch.rand(N, device=device) + 0.5) / 127
    return {**int4_layer(N, K, R, dtype, device), "qweight": codes, "wscales": wscales}


def awq_layer(N: int, K: int, _rank: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """The tensors of an awq part."""
    wzeros = scales(N, K, dtype, device) - 0.05
    return {"qweight": packed_codes(N, K, device), "wscales": scales(N, K, dtype, device), "wzeros": wzeros}
