"""The environment check: what it says on machines of many kinds, and that it never raises."""

import types

import pytest
import torch

from svdquant_pack.svdq_core import environment, kernel_probe, published_files
from svdquant_pack.svdq_core.environment import NOTE, PROBLEM, report, runs_on
from svdquant_pack.svdq_core.kernel_probe import TritonState

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
GIB = 2**30
SOUND = TritonState("3.7.1")
ABSENT = TritonState(state="missing", reason="it is not installed")
BROKEN = TritonState(state="broken", reason="ImportError: DLL")


def levels(text: str, level: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip().startswith(level)]


def to_do(text: str) -> str:
    return text.split("What to do")[1]


@pytest.fixture
def no_driver(monkeypatch):
    monkeypatch.setattr(environment, "nvidia_driver", lambda: "")


@pytest.fixture
def machine(monkeypatch):
    """Makes torch look like that of a machine with a given NVIDIA GPU; kernels are not run."""

    def make(capability=(8, 9), gib=24.0, triton=SOUND, failure="", built_for=("sm_80", "sm_90")):
        properties = types.SimpleNamespace(name="Some GPU", multi_processor_count=100, gcnArchName="")
        replacements = {
            "is_available": lambda: True,
            "get_device_properties": lambda *_: properties,
            "get_device_capability": lambda *_: capability,
            "mem_get_info": lambda *_: (int(gib * GIB) // 2, int(gib * GIB)),
            "get_arch_list": lambda: list(built_for),
            "current_device": lambda: 0,
            "is_current_stream_capturing": lambda: False,
        }
        for name, value in replacements.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(environment, "nvidia_driver", lambda: "580.65")
        monkeypatch.setattr(environment, "why_no_triton", lambda _: None)
        monkeypatch.setattr(kernel_probe, "triton_state", lambda: triton)
        monkeypatch.setattr(kernel_probe, "try_triton", lambda _: failure)
        trial = kernel_probe.Trial("w4a4", "a reason", 1.0, 0.001)
        monkeypatch.setattr(kernel_probe, "try_layer", lambda *_: trial)
        generation = published_files.generation.__globals__["_gpu_generation"]
        generation.cache_clear()
        return lambda: report(GPU)

    yield make
    monkeypatch.undo()
    published_files.generation.__globals__["_gpu_generation"].cache_clear()


def test_a_machine_without_a_gpu_has_nothing_to_repair(no_driver, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    text = report(CPU)
    assert not levels(text, PROBLEM)
    assert "CPU" in text and "Nothing has to be repaired" in to_do(text)
    assert "svdq-int4_r32-flux.1-dev.safetensors" in text
    assert text.count("tried on a small layer: right") == 2  # int4 and nvfp4, really run


def test_a_driver_without_a_torch_for_it_is_a_problem(monkeypatch):
    monkeypatch.setattr(environment, "nvidia_driver", lambda: "580.65")
    monkeypatch.setattr(torch.version, "cuda", None)
    text = report(CPU)
    assert "this torch cannot use it" in levels(text, PROBLEM)[0]
    assert "torch for CUDA" in to_do(text)


def test_a_torch_for_cuda_that_finds_no_gpu_says_why(monkeypatch):
    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nmore")

    monkeypatch.setattr(environment, "nvidia_driver", lambda: "470.1")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    text = report(CPU)
    assert "too old (found version 11040)." in levels(text, PROBLEM)[0] and "\nmore" not in text
    assert "470.1 may be too old for CUDA 13.0" in to_do(text)


def test_a_sound_ada_card_gets_int4(machine):
    text = machine()()
    assert not levels(text, PROBLEM)
    assert "sm_89" in text and "24.0 GiB" in text and "driver 580.65" in text
    assert "svdq-int4_r32-flux.1-dev" in text and "as a whole" in text
    assert "4-bit tensor cores" in text


def test_paths_that_are_not_taken_say_why(machine):
    text = machine()()
    assert "why not FP4 tensor cores: sm_89 has none" in text
    assert "why not FP4 tensor cores" not in machine(failure="RuntimeError: no compiler")()


def test_blackwell_gets_fp4(machine):
    assert "e.g. svdq-fp4_r32-flux.1-dev" in machine((12, 0), 16.0, built_for=("sm_120",))()


@pytest.mark.parametrize(("gib", "words"), [(6.0, "main memory"), (2.0, "very little"), (12.0, "as a whole")])
def test_memory_is_judged(machine, gib, words):
    assert words in machine(gib=gib)()


@pytest.mark.parametrize(
    ("options", "problem", "advice"),
    [
        (
            {"triton": TritonState(state="missing", reason="it is not installed")},
            "Triton cannot be used",
            "pip install",
        ),
        ({"triton": BROKEN}, "ImportError: DLL", "-m pip install -U"),
        ({"failure": "RuntimeError: Failed to find C compiler"}, "cannot compile", ""),
        ({"built_for": ("sm_50", "sm_75")}, "not for this GPU", "newer torch"),
    ],
)
def test_problems_are_named_with_what_to_do(machine, options, problem, advice):
    text = machine(**options)()
    assert problem in "\n".join(levels(text, PROBLEM))
    assert advice in to_do(text)
    assert problem in to_do(text)


def test_without_a_compiler_no_speed_is_promised(machine):
    assert "tensor cores" in machine()()
    text = machine(failure="RuntimeError: no compiler")()
    assert "tensor cores" not in text and "saves memory, not time" in text


def test_missing_build_tools_are_named(machine, monkeypatch):
    monkeypatch.setattr(kernel_probe, "missing_build_tools", lambda: ["a C compiler", "Python's headers (Python.h)"])
    text = machine(failure="RuntimeError: no compiler")()
    assert "Missing here: a C compiler and Python's headers" in to_do(text)


def test_a_cache_that_cannot_be_written_is_a_problem(machine, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    text = machine()()
    assert "compiled kernels cannot be kept" in "\n".join(levels(text, PROBLEM))
    assert "TRITON_CACHE_DIR" in to_do(text)


@pytest.mark.parametrize(
    ("trial", "words"),
    [
        (kernel_probe.Trial("w4a8", "r", failure="RuntimeError: bad PTX"), "a trial failed: RuntimeError: bad PTX"),
        (kernel_probe.Trial("w4a8", "r", 1.0, 0.7), "wrong values (error 0.700)"),
        (kernel_probe.Trial("w4a8", "r", 1.0, float("nan")), "wrong values"),
    ],
)
def test_a_kernel_that_fails_or_lies_is_a_problem(machine, monkeypatch, trial, words):
    call = machine()
    monkeypatch.setattr(kernel_probe, "try_layer", lambda *_: trial)
    text = call()
    assert words in text and "w4a16" in to_do(text)


def test_what_raises_becomes_a_line(machine, monkeypatch):
    call = machine()

    def broken(*_):
        raise OSError("the driver went away")

    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    monkeypatch.setattr(kernel_probe, "try_layer", broken)
    text = call()
    assert len([line for line in levels(text, NOTE) if "the driver went away" in line]) == 3


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((8, 9), ["sm_80", "sm_90"], True),  # the same major version, an older minor one
        ((8, 6), ["sm_89"], False),
        ((12, 0), ["sm_90", "compute_90"], True),  # from the intermediate code
        ((9, 0), ["sm_90a"], True),
        ((6, 1), ["sm_75", "compute_90"], False),
        ((8, 0), [], True),  # nothing is known
    ],
)
def test_which_code_runs_on_which_gpu(capability, built_for, runs):
    assert runs_on(capability, built_for) is runs


def test_it_says_whether_auto_was_measured(machine, monkeypatch):
    text = machine((9, 0))()
    assert "auto goes by the table, because its kind was timed on an H200" in text
    check = machine((8, 9))
    monkeypatch.setattr(environment, "describe_choices", lambda _device: [])
    assert "the first model that is loaded with compute auto is measured" in check()
    monkeypatch.setattr(environment, "describe_choices", lambda _device: ["FLUX.1: w4a8 60.0 ms"])
    assert "FLUX.1: w4a8 60.0 ms" in check()
