"""Kernels compiled for GPUs that are not here: right matrix instruction, shared memory that fits, no spills.

Which kernels for which GPU: compile_plan.py. `python dev.py compile` compiles all for all.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest
from compile_plan import COMPILED, complete

from svdquant_pack import ROOT
from svdquant_pack.kernels.gpus import Generation
from svdquant_pack.kernels.paths.layer_paths import NATIVE_FP4

CACHE = "svdquant/compiled_kernels"
COMPILER = Path(__file__).with_name("cross_compile.py")


def _compile(gpu: str) -> dict:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(str(ROOT / room) for room in ("tests", "tools", "tests/kernels"))
    result = subprocess.run(
        [sys.executable, COMPILER, gpu, "--own"], capture_output=True, text=True, env=environment, check=False
    )
    return json.loads(result.stdout) if result.returncode == 0 else {"error": result.stderr[-2000:]}


def _sources() -> str:
    """A hash of all that decides what the compiler makes: kernels, cases, Triton and Python."""
    digest = hashlib.sha256(f"{version('triton')} {sys.version}".encode())
    for file in [*sorted((ROOT / "kernels").rglob("*.py")), *sorted(COMPILER.parent.rglob("*.py"))]:
        digest.update(f"\n{file.relative_to(ROOT).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def reports(pytestconfig) -> dict[str, dict]:
    """What came out, by GPU; two compilers at a time. Sound ones stay in pytest's cache until a source changes."""
    names, sources = [row.name for row in COMPILED], _sources()
    kept = pytestconfig.cache.get(CACHE, {})
    if kept.get("sources") == sources and sorted(kept["reports"]) == sorted(names):
        return kept["reports"]
    with ThreadPoolExecutor(2) as pool:
        found = complete(dict(zip(names, pool.map(_compile, names), strict=True)))
    if not any("error" in report or report["failed"] or report["missing"] for report in found.values()):
        pytestconfig.cache.set(CACHE, {"sources": sources, "reports": found})
    return found


@pytest.fixture(params=COMPILED, ids=lambda row: row.name)
def gpu(request) -> Generation:
    return request.param


@pytest.fixture
def kernels(reports, gpu) -> dict[str, dict]:
    report = reports[gpu.name]
    assert "error" not in report, report["error"]
    assert report["failed"] == {}
    assert report["missing"] == {}, f"Triton {report['triton']} is too old for these; test with what torch pins"
    return report["kernels"]


def test_shared_memory_fits(kernels, gpu):
    limit = gpu.target.shared_limit
    too_large = {name: report["shared"] for name, report in kernels.items() if report["shared"] > limit}
    assert not too_large, f"more than {limit} bytes"


def test_nothing_spills(kernels, gpu):
    spills = {name: report["spills"] for name, report in kernels.items()}
    assert {name: n for name, n in spills.items() if n > gpu.target.spills.get(name, 0)} == {}


def test_no_product_under_way_reads_what_others_read(kernels, gpu):
    """Triton 3.6 gives such a tile one buffer too few, and the next copy overwrites it (DECISIONS 50)."""
    shared = {name: report["shared_tiles"] for name, report in kernels.items() if report.get("shared_tiles")}
    assert not gpu.wgmma or not shared


@pytest.mark.parametrize("op", ["gemm_w4a8", "gemm_w4a8 sum gelu", "gemm_w4a4"])
def test_int8_matrix_instruction(kernels, gpu, op):
    if gpu.target.int8_product is None:
        assert op not in kernels, "a GPU without int8 products takes no path that needs them"
        return
    operands = r"\..*\.s32\.s8\.s8" if gpu.target.backend == "cuda" else ""
    pattern = re.escape(gpu.target.int8_product) + operands
    assert any(re.match(pattern, name) for name in kernels[op]["instructions"]), kernels[op]["instructions"]


def test_native_int4_where_the_hardware_has_it(kernels, gpu):
    names = {name for name in kernels if name.startswith("gemm_w4a4_native")}
    assert bool(names) == gpu.int4
    for name in names:
        integer = {i for i in kernels[name]["instructions"] if i.startswith("IMMA")}
        assert integer == {"IMMA.16864.U4.S4" if "unsigned" in name else "IMMA.16864.S4.S4"}, name


def test_native_fp4_where_the_hardware_has_it(kernels, gpu):
    assert ("gemm_nvfp4" in kernels) == (NATIVE_FP4.why_not_on(gpu) is None)
    if "gemm_nvfp4" in kernels:
        assert any("kind::mxf4nvf4" in name for name in kernels["gemm_nvfp4"]["instructions"])
        assert kernels["gemm_nvfp4"]["byte_loads"] == 0, "scales are copied while products are computed"


def test_hopper_specializes_its_warps(kernels, gpu):
    names = {name for name in kernels if name.startswith("gemm_w4a8_hopper")}
    assert len(names) == (4 if gpu.wgmma else 0)
    for name in names:
        instructions = kernels[name]["instructions"]
        assert "setmaxnreg" in instructions
        assert any(re.search(r"wgmma\..*\.s32\.s8\.s8", name) for name in instructions)
