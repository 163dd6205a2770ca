"""auto: the fastest mode that is at least as accurate as w4a4 on a GPU, and why, in words."""

import pytest
import torch

from svdquant_pack.kernels import choose_compute as auto
from svdquant_pack.kernels import gpus
from svdquant_pack.kernels.paths import four_bit, layer_paths, path

GPU = torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU of a generation, by name, and a Triton that has or lacks languages of kernels."""

    def make(name, lacking=()):
        rows = {row.name: row for row in (*gpus.GENERATIONS, gpus.OTHER)}
        for module in (auto, gpus):
            monkeypatch.setattr(module, "generation", lambda _device: rows[name])
        monkeypatch.setattr(gpus, "why_no_import", lambda: None)
        why = dict.fromkeys(lacking, "this Triton lacks it")
        for module in (four_bit, layer_paths):
            monkeypatch.setattr(module, "why_no_language", why.get)

    return make


@pytest.mark.parametrize(("version", "mode"), [("3.7.1", "w4a8"), ("3.8.0", "w4a4"), ("3.10.0+git", "w4a4")])
def test_fp4_products_that_only_a_newer_triton_compiles(version, mode, machine, monkeypatch):
    machine("sm_121")
    path.why_too_old.cache_clear()
    monkeypatch.setattr("triton.__version__", version)
    chosen, reason = auto.choose_compute("nvfp4", GPU)
    path.why_too_old.cache_clear()
    assert chosen == mode
    assert (mode == "w4a4") or "Triton 3.7.1 compiles no FP4 products for sm_121; Triton 3.8 does" in reason


@pytest.mark.parametrize(
    ("gpu", "scheme", "mode"),
    [
        ("sm_80", "int4", "w4a4"),
        ("sm_89", "int4", "w4a4"),
        ("sm_89", "nvfp4", "w4a8"),
        ("sm_90", "int4", "w4a8"),
        ("sm_90", "nvfp4", "w4a8"),
        ("sm_100", "int4", "w4a16"),
        ("sm_100", "nvfp4", "w4a4"),
        ("sm_120", "int4", "w4a8"),
        ("sm_120", "nvfp4", "w4a4"),
        ("gfx906", "int4", "w4a16"),
        ("gfx1030", "int4", "w4a16"),
        ("gfx1100", "int4", "w4a16"),
        ("gfx1201", "int4", "w4a8"),
        ("gfx942", "nvfp4", "w4a8"),
        ("other", "int4", "w4a16"),
    ],
)
def test_the_fastest_mode(gpu, scheme, mode, machine):
    machine(gpu)
    chosen, reason = auto.choose_compute(scheme, GPU)
    assert chosen == mode
    assert gpu in reason or "no kernel is made for" in reason


@pytest.mark.parametrize("gpu", ["sm_80", "sm_86", "sm_89"])
def test_without_the_language_of_the_fast_kernel(gpu, machine):
    """torch 2.7 and 2.8 bring a Triton without Gluon for Ampere; int8 w4a4, the step below, is slower than w4a8."""
    machine(gpu, lacking=["gemm_w4a4_native"])
    chosen, reason = auto.choose_compute("int4", GPU)
    assert chosen == "w4a8"
    assert reason.startswith("why not INT4 tensor cores: this Triton lacks it")


def test_reasons_name_the_paths_that_are_not_taken(machine):
    machine("sm_100")
    reason = auto.choose_compute("int4", GPU)[1]
    assert "why not INT4 tensor cores: sm_100 has none" in reason
    assert "why not int8 tensor cores: on sm_100" in reason


def test_8_bit_weights_and_the_cpu():
    assert auto.choose_compute("int8", GPU)[0] == "w4a8"
    assert auto.choose_compute("int4", torch.device("cpu"))[0] == "w4a4"
