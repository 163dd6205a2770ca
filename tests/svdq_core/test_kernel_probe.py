"""The trial of the kernels: it runs what a model runs, sees wrong values and failures, and hears what is logged."""

import logging
import sys

import pytest
import torch

from svdquant_pack.svdq_core import kernel_probe
from svdquant_pack.svdq_core.kernel_probe import triton_state, try_layer

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_a_layer_runs_and_is_right(precision):
    trial = try_layer(precision, CPU)
    assert trial.right and trial.error == 0.0 and not trial.failure and not trial.notes
    assert trial.compute in ("w4a4", "w4a8", "w4a16") and trial.reason


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_a_layer_on_the_gpu_is_right(precision):
    trial = try_layer(precision, torch.device("cuda", 0))
    assert trial.right, trial
    assert kernel_probe.try_triton(torch.device("cuda", 0)) == ""


def test_wrong_values_are_seen(monkeypatch):
    real, calls = kernel_probe.apply_layer, []

    def wrong_the_second_time(*args):
        calls.append(1)
        return real(*args) * (1.0 if len(calls) == 1 else 1.1)

    monkeypatch.setattr(kernel_probe, "apply_layer", wrong_the_second_time)
    trial = try_layer("int4", CPU)
    assert not trial.right and trial.error == pytest.approx(0.1, abs=0.01)


def test_a_failure_is_one_line(monkeypatch):
    def fail(*_):
        raise RuntimeError("\nthe compiler is missing\nand many lines more")

    monkeypatch.setattr(kernel_probe, "apply_layer", fail)
    trial = try_layer("int4", CPU)
    assert trial.failure == "RuntimeError: the compiler is missing" and not trial.right


def test_warnings_of_the_kernels_are_notes(monkeypatch):
    real = kernel_probe.apply_layer

    def warn(*args):
        logging.getLogger("svdquant").warning("a slower path runs: %s", "no compiler")
        return real(*args)

    monkeypatch.setattr(kernel_probe, "apply_layer", warn)
    assert "a slower path runs: no compiler" in try_layer("int4", CPU).notes
    assert not [h for h in logging.getLogger("svdquant").handlers if isinstance(h, kernel_probe._Recorder)]


def test_triton_that_is_missing_or_broken(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert triton_state().state == kernel_probe.MISSING

    def broken(_):
        raise OSError("libtriton.so: undefined symbol")

    monkeypatch.setattr(kernel_probe.importlib, "import_module", broken)
    state = triton_state()
    assert state.state == kernel_probe.BROKEN and "undefined symbol" in state.reason

    def needs_another(_):
        raise ModuleNotFoundError("No module named 'setuptools'", name="setuptools")

    monkeypatch.setattr(kernel_probe.importlib, "import_module", needs_another)
    assert "it needs setuptools" in triton_state().reason


def test_the_cache_folder_follows_tritons_variables(monkeypatch, tmp_path):
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_HOME", str(tmp_path))
    assert kernel_probe.cache_folder() == tmp_path / ".triton" / "cache"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "own"))
    assert kernel_probe.cache_folder() == tmp_path / "own"
    assert kernel_probe.why_not_writable(tmp_path / "own") == ""


def test_missing_build_tools(monkeypatch, tmp_path):
    monkeypatch.setattr(kernel_probe.platform, "system", lambda: "Linux")
    monkeypatch.setattr(kernel_probe.shutil, "which", lambda _: None)
    monkeypatch.setattr(kernel_probe.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert kernel_probe.missing_build_tools() == ["a C compiler", "Python's headers (Python.h)"]
    (tmp_path / "Python.h").write_text("")
    monkeypatch.setattr(kernel_probe.shutil, "which", lambda name: "/usr/bin/gcc" if name == "gcc" else None)
    assert kernel_probe.missing_build_tools() == []
