"""gemm_w4a4_native without its GPUs: the PTX that Triton makes of it, executed; and on a GPU, emulated."""

import json
import os
import subprocess
import sys

import pytest
import torch
from compare import assert_close
from problems import branch, packed_codes, scales

from svdquant_pack import ROOT
from svdquant_pack.kernels import reference
from svdquant_pack.kernels.packing import unpack_int4
from svdquant_pack.kernels.step.fragments import (
    are_fragments,
    from_weight_fragments,
    to_activation_fragments,
    to_weight_fragments,
)
from svdquant_pack.kernels.step.quantize_act import quantize_act

RUNNER = ROOT / "tests" / "kernels" / "run_native_ptx.py"
CASES = [
    # M, rows beyond M up to a whole tile, N, K, R, act_unsigned, half type, GPU
    {"M": 128, "N": 128, "K": 384, "R": 0, "act_unsigned": False, "dtype": "float16", "gpu": 89},
    {"M": 91, "N": 128, "K": 384, "R": 32, "act_unsigned": True, "dtype": "bfloat16", "gpu": 86},
    {"M": 200, "N": 192, "K": 320, "R": 48, "act_unsigned": False, "dtype": "bfloat16", "gpu": 80},
]


def test_fragments_hold_what_the_instruction_reads():
    """Word 2 of lane 4 * g + t of an activation tile: row g, the second half of k, eight codes from 8 * t on."""
    qx, row, thread = packed_codes(32, 128, torch.device("cpu")), 16 + 5, 3
    fragments = to_activation_fragments(qx)
    assert fragments.shape == (2, 2, 32, 4)
    words = qx.view(torch.int32)
    assert fragments[1, 1, 4 * 5 + thread, 2] == words[row, 8 + 4 + thread]
    assert fragments[1, 1, 4 * 5 + thread, 1] == words[row + 8, 8 + thread]
    weights = to_weight_fragments(qx)
    assert weights[1, 1, 4 * 5 + thread, 1] == words[row, 8 + 4 + thread]
    assert weights[1, 1, 4 * 5 + thread, 2] == words[row + 8, 8 + thread]
    assert sorted(fragments.flatten().tolist()) == sorted(words.flatten().tolist())


def test_fragments_of_a_weight_come_back():
    qweight = packed_codes(48, 192, torch.device("cpu"))
    fragments = to_weight_fragments(qweight)
    assert are_fragments(fragments) and not are_fragments(qweight)
    assert torch.equal(from_weight_fragments(fragments), qweight)


def run_ptx(case: dict) -> dict:
    """Compile and execute in a process of its own: the interpreter of the other tests must be off there."""
    pytest.importorskip(
        "triton.experimental.gluon.language.nvidia.ampere", reason="this Triton has no Gluon for Ampere"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(str(ROOT / room) for room in ("tests", "tools", "tests/kernels"))
    command = [sys.executable, RUNNER, json.dumps(case)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"sm_{case['gpu']}-{case['M']}x{case['N']}x{case['K']}-r{case['R']}"
)
def test_generated_ptx_matches_reference(case):
    report = run_ptx(case)
    for mode in ("at once", "late"):
        assert report[mode]["error"] < report["limit"], f"copies landing {mode}: {report}"
        assert report[mode]["rows beyond M written"] == 0
    assert report["instruction"] in report["instructions"]


@pytest.mark.gpu
@pytest.mark.parametrize(("M", "N", "K"), [(1, 64, 64), (63, 1152, 1152), (300, 3072, 3072), (257, 192, 320)])
@pytest.mark.parametrize("R", [0, 48])
@pytest.mark.parametrize("act_unsigned", [False, True])
def test_matches_reference(M, N, K, R, act_unsigned, dtype, device):
    from svdquant_pack.kernels.step.gemm_w4a4_native import gemm_w4a4_native

    x = torch.randn(M, K, device=device).abs().to(dtype) if act_unsigned else torch.randn(M, K, device=device).to(dtype)
    smooth_factor, proj_down, proj_up = branch(N, K, R, dtype, device)
    qweight, wscales = packed_codes(N, K, device), scales(N, K, dtype, device)
    bias = torch.randn(N, device=device).to(dtype)
    qx, ascales, x_down = quantize_act(
        x, smooth_factor, proj_down, "int4", output="packed", act_unsigned=act_unsigned, pad_rows=128
    )
    rest = {"x_down": x_down, "proj_up": proj_up, "bias": bias, "act_unsigned": act_unsigned}
    actual = gemm_w4a4_native(qx, ascales, qweight, wscales, **rest)
    assert_close(actual, reference.gemm_w4a4(qx[:M], ascales[:, :M], qweight, wscales, **rest), op="gemm_w4a4")


def test_packed_codes_reach_minus_eight():
    """The problems above hold the code that only files use."""
    assert (unpack_int4(packed_codes(64, 64, torch.device("cpu"))) == -8).any()
