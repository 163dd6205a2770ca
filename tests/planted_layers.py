"""Layers with planted difficulties, and the plain 4-bit layer to beat."""

import torch
from layer_calls import run_layer

from svdquant_pack.kernels.packing import pack_nibbles
from svdquant_pack.kernels.reference import encode_e2m1
from svdquant_pack.svdq_core.quantize.grid import INT4, NVFP4
from svdquant_pack.svdq_core.quantize.round import fit_scales, round_to_units


def draw_weight(out_features, in_features, seed=0):
    """Gaussian noise, a rank-96 part with slowly falling strengths, and 40 columns 6 times as large."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_features, in_features, generator=g)
    up, down = (torch.randn(n, 96, generator=g) for n in (out_features, in_features))
    weight += 0.5 * (up / torch.arange(1, 97) ** 0.5) @ down.T
    weight[:, torch.randperm(in_features, generator=g)[:40]] *= 6
    return (0.02 * weight).to(torch.bfloat16)


def draw_tokens(count, in_features, seed=1, after_gelu=False):
    x = torch.randn(count, in_features, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.gelu(x, approximate="tanh") if after_gelu else x


def nearest_tensors(weight, precision):
    """Round-to-nearest without smoothing and low-rank branch, as tensors of kernels/format.py."""
    grid = NVFP4 if precision == "nvfp4" else INT4
    scales = fit_scales(weight.float(), grid, torch.bfloat16, sweep=False)
    units = round_to_units(weight.float(), scales, grid)
    codes = encode_e2m1(units) if precision == "nvfp4" else units.to(torch.int8)
    tensors = {
        "qweight": pack_nibbles(codes),
        "wscales": scales.groups.T.contiguous(),
        "smooth_factor": torch.ones(weight.shape[1]),
        "proj_down": torch.zeros(weight.shape[1], 0),
        "proj_up": torch.zeros(weight.shape[0], 0),
    }
    return tensors if scales.tensor is None else {**tensors, "wtscale": scales.tensor}


def output_error(x, linear, part_tensors, mode, quantized_bias, *, act_unsigned=False):
    """||quantized - dense|| / ||dense|| by the pack's forward; linear: (weight, bias), mode: (scheme, compute)."""
    (weight, bias), (scheme, compute) = linear, mode
    dense = x @ weight.float().T + (0 if bias is None else bias.float())
    out = run_layer(x, part_tensors, scheme, compute, quantized_bias, act_unsigned=act_unsigned)
    return float((out - dense).norm() / dense.norm())
