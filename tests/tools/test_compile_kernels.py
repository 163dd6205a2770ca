"""compile_kernels: what it makes of a compiler's report, and that a broken download leaves nothing behind."""

import subprocess

import compile_kernels
import pytest
from dev_environment import optional_requirements

from svdquant_pack.kernels.gpus import GENERATIONS


def report(**changed):
    kernels = {"gemm_w4a8": {"spills": 0}, "gelu": {"spills": 0}}
    return {"kernels": kernels, "missing": {}, "failed": {}, **changed}


def test_all_is_well():
    assert compile_kernels.judge("3.6.0", "sm_90", report()) == ("2 compile", True)


def test_what_an_old_triton_has_no_words_for_is_said_and_right():
    cell, right = compile_kernels.judge("3.3.1", "sm_80", report(missing={"gemm_w4a4_native": "no Gluon"}))
    assert right and "no language for gemm_w4a4_native" in cell


def test_a_failure_is_wrong_unless_it_is_known():
    cell, right = compile_kernels.judge("3.6.0", "sm_90", report(failed={"gelu": "assertion"}))
    assert not right and "gelu: assertion" in cell
    (version, kernel), why = next((key, why) for key, why in compile_kernels.KNOWN.items() if "gemm" in key[1])
    failed = {f"{kernel} sum gelu": "signature"}
    cell, right = compile_kernels.judge(version, "sm_90", report(failed=failed))
    assert right and why in cell
    assert not compile_kernels.judge("3.9.0", "sm_90", report(failed=failed))[1]


def test_a_compiler_that_breaks_off_is_wrong_unless_it_is_known():
    assert not compile_kernels.judge("3.6.0", "sm_90", {"error": ["Aborted"]})[1]
    assert compile_kernels.judge("3.3.1", "gfx942", {"error": ["no linker"]})[1]


def test_the_exit_code_says_whether_something_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(compile_kernels, "install", lambda version: None)
    reports = {"sm_80": report(), "sm_90": report(failed={"gelu": "assertion"})}
    monkeypatch.setattr(compile_kernels, "compile_for", lambda version, gpu: reports[gpu])
    assert compile_kernels.main(["3.6.0", "--gpus", "sm_80"]) == 0
    assert compile_kernels.main(["3.6.0", "--gpus", "sm_80", "sm_90"]) == 1
    assert "| 3.6.0 | sm_90 | 2 compile; gelu: assertion |" in capsys.readouterr().out


def test_a_broken_download_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_kernels, "TRITONS", tmp_path)

    def pip(command, check):
        target = command[command.index("--target") + 1]
        (target / "triton").mkdir(parents=True)
        if "triton==9" in command:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(compile_kernels.subprocess, "run", pip)
    with pytest.raises(subprocess.CalledProcessError):
        compile_kernels.install("9")
    assert not (tmp_path / "9").exists()
    assert (compile_kernels.install("3.6.0") / "triton").is_dir()


def test_every_version_that_something_is_known_of_is_tried():
    assert {version for version, _ in compile_kernels.KNOWN} <= set(compile_kernels.VERSIONS)


def test_the_version_of_the_tests_compiles_for_every_gpu():
    every = [row.name for row in GENERATIONS if row.target is not None]
    assert f"triton=={compile_kernels.TESTED}" in (package.requirement for package in optional_requirements())
    assert compile_kernels.gpus_for(compile_kernels.TESTED) == every
    assert set(compile_kernels.gpus_for("3.6.0")) < set(every)
