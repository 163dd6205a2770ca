"""Compiles gemm_w4a4_native for a GPU that is not here, executes the PTX and prints how far it is from the reference.

python run_native_ptx.py '{"M": 91, "N": 128, "K": 384, "R": 32, "act_unsigned": true, "dtype": "bfloat16", "gpu": 86}'
"""

import json
import re
import sys

import numpy as np
import torch
from compile_reports import nvidia_report
from cross_compile import compile_case, row_of
from problems import packed_codes, scales
from ptx_machine import PtxMachine

from svdquant_pack.kernels import reference
from svdquant_pack.kernels.step.fragments import to_activation_fragments, to_weight_fragments
from svdquant_pack.kernels.tiles import native_int4_tile

CPU = torch.device("cpu")
LIMITS = {"float16": 6e-4, "bfloat16": 5e-3}  # of the largest value: half a step of the type, and its exponent


def main(M: int, N: int, K: int, R: int, *, act_unsigned: bool, dtype: str, gpu: int) -> dict:
    torch.manual_seed(42)
    half = getattr(torch, dtype)
    tile = native_int4_tile(M, N, K // 64)
    rows = -(-M // tile["BLOCK_M"]) * tile["BLOCK_M"]
    qx, qweight = packed_codes(rows, K, CPU), packed_codes(N, K, CPU)
    qx[0], qweight[0] = (-1 if act_unsigned else -120), -120  # the largest sums: 15 or -8 against -8
    ascales, wscales = scales(rows, K, half, CPU), scales(N, K, half, CPU)
    x_down, proj_up = torch.randn(rows, R).to(half), torch.randn(N, R).to(half)
    bias, out = torch.randn(N).to(half), torch.full((rows, N), float("nan"), dtype=half)

    types = {"qx_ptr": "*i32", "qweight_ptr": "*i32", "x_down_ptr": "*i32", "proj_up_ptr": "*i32"}
    float_type = "*bf16" if dtype == "bfloat16" else "*fp16"
    types |= dict.fromkeys(("ascales_ptr", "wscales_ptr", "bias_ptr", "out_ptr"), float_type)
    flags = {"UNSIGNED": act_unsigned, "BFLOAT16": dtype == "bfloat16", "HAS_BIAS": True}
    warps = {"num_warps": tile["WARPS_M"] * tile["WARPS_N"]}
    compiled = compile_case(
        row_of(f"sm_{gpu}"),
        "gemm_w4a4_native",
        "_gemm_w4a4_native_kernel",
        types,
        {**flags, **tile, **warps},
        odd=("M", "GROUPS"),
    )

    tensors = {
        "qx_ptr": to_activation_fragments(qx),
        "qweight_ptr": to_weight_fragments(qweight),
        "ascales_ptr": ascales,
        "wscales_ptr": wscales,
        "x_down_ptr": x_down,
        "proj_up_ptr": proj_up,
        "bias_ptr": bias,
        "out_ptr": out,
    }
    arrays = {name: tensor.contiguous().view(-1).view(torch.uint8).numpy() for name, tensor in tensors.items()}
    addresses, end = {}, 256
    for name, array in arrays.items():
        addresses[name], end = end, end + -(-array.size // 256) * 256
    values = {**addresses, "M": M, "M_PADDED": rows, "N": N, "GROUPS": K // 64, "R": R}
    names = [name for name in compiled.src.fn.arg_names if compiled.src.signature[name] != "constexpr"]
    parameters = [values[name] for name in names] + [0, 0]  # the scratch buffers that Triton appends
    wanted = reference.gemm_w4a4(
        qx, ascales, qweight, wscales, x_down=x_down, proj_up=proj_up, bias=bias, act_unsigned=act_unsigned
    )[:M].float()

    report = {"limit": LIMITS[dtype], "instruction": f"IMMA.16864.{'U4' if act_unsigned else 'S4'}.S4"}
    report["instructions"] = nvidia_report(compiled)["instructions"]
    for mode in ("at once", "late"):
        memory = np.zeros(end, np.uint8)
        for name, array in arrays.items():
            memory[addresses[name] : addresses[name] + array.size] = array
        machine = PtxMachine(compiled.asm["ptx"], late_copies=mode == "late")
        machine.run(memory, parameters, rows // tile["BLOCK_M"] * (N // tile["BLOCK_N"]), compiled.metadata.shared)
        start = addresses["out_ptr"]
        result = (
            torch.from_numpy(memory[start : start + arrays["out_ptr"].size].copy()).view(half).view(rows, N).float()
        )
        error = (result[:M] - wanted).abs().max() / wanted.abs().max()
        report[mode] = {"error": float(error), "rows beyond M written": int((~result[M:].isnan()).sum())}
    return report


if __name__ == "__main__":
    report = main(**json.loads(sys.argv[1]))
    # JSON has no NaN; a value that nobody wrote must fail the comparison
    sys.stdout.write(re.sub(r"\bNaN\b", "1e9", json.dumps(report)))
