"""The plan of a model's kernels holds all that pictures, batches and LoRAs can ask for, and none of it twice."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from svdquant_pack import ROOT
from svdquant_pack.kernels.gpus import GENERATIONS
from svdquant_pack.kernels.launching import ahead
from svdquant_pack.svdq_core import kernel_plan

PROGRAM = Path(__file__).with_name("plan_coverage.py")
sys.path.insert(0, str(PROGRAM.parent))
import plan_coverage  # noqa: E402  (a program beside the tests)

HOPPER = next(row for row in GENERATIONS if row.name == "sm_90")
GPU = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def found() -> dict[str, dict]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT / "tools")
    done = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", [" ".join(case) for case in plan_coverage.CASES])
def test_other_sizes_batches_and_loras_ask_for_nothing_new(found, case):
    assert found[case]["missing"] == []


def test_flux_needs_few_kernels_on_hopper(found):
    """A kernel of gemm_w4a8_hopper takes two to five seconds to compile: ranks and sizes must not multiply them."""
    planned = found["sm_90 int4 w4a8"]["planned"]
    assert planned["_gemm_w4a8_hopper_kernel"] == 16  # what is done with the result 4, rank 2, tiles that are cut 2
    assert planned["_quantize_tokens_kernel"] == 10  # tokens 2, width 2, ranks 2; and one of shared inputs for each
    assert sum(planned.values()) < 75


@pytest.fixture
def a_gpu(monkeypatch):
    """What compile_model asks of a GPU, and what it would line up."""
    lined_up: list[list[tuple]] = []
    noted: set[str] = set()
    monkeypatch.setattr(kernel_plan, "why_no_triton", lambda _device: None)
    monkeypatch.setattr(kernel_plan, "generation", lambda _device: HOPPER)
    monkeypatch.setattr(kernel_plan, "processors", lambda _device: 132)
    monkeypatch.setattr(kernel_plan, "threads", lambda: 2)
    monkeypatch.setattr(kernel_plan, "was_compiled", lambda digest: digest in noted)
    monkeypatch.setattr(kernel_plan, "note_compiled", noted.add)
    monkeypatch.setattr(kernel_plan, "compile_ahead", lambda wanted, _device, _batch: lined_up.append(list(wanted)))
    monkeypatch.setattr(kernel_plan, "plan_kernels", lambda *_, **__: iter([{("first",): None}, {("second",): None}]))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA H200")
    return lined_up


def compile_model(dtype: torch.dtype = torch.bfloat16, device: torch.device = GPU) -> None:
    thread = kernel_plan.compile_model(kernel_plan.ModelForm((), (), "w4a8", dtype), device)
    if thread is not None:
        thread.join()


def test_a_model_is_compiled_once_for_all(a_gpu):
    compile_model()
    assert a_gpu == [[("first",)], [("second",)]]
    compile_model()
    assert len(a_gpu) == 2, "its kernels are on the disk"
    compile_model(torch.float16)
    assert len(a_gpu) == 4, "others"


def test_nothing_is_compiled_where_there_are_no_kernels_or_no_spare_processor(a_gpu, monkeypatch):
    compile_model(device=torch.device("cpu"))
    compile_model(torch.float32)
    monkeypatch.setattr(kernel_plan, "threads", lambda: 0)
    compile_model()
    monkeypatch.setattr(kernel_plan, "threads", lambda: 2)
    monkeypatch.setattr(kernel_plan, "why_no_triton", lambda _device: "Triton is not installed")
    compile_model()
    assert a_gpu == []


def test_a_plan_that_fails_ends_nothing(a_gpu, monkeypatch):
    def plan(*_, **__):
        raise NotImplementedError("no meta tensors")

    monkeypatch.setattr(kernel_plan, "plan_kernels", plan)
    compile_model()
    assert a_gpu == [] and not [t for t in threading.enumerate() if t.name.startswith("svdquant")]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
def test_a_layer_on_the_gpu_launches_what_was_planned():
    from svdquant_pack.kernels import gpus
    from svdquant_pack.kernels.launching import launch

    form = plan_coverage.form("int4", 3072, 3072)
    where = {"gpu": gpus.generation(GPU), "processors": gpus.processors(GPU), "device": GPU}
    model = kernel_plan.ModelForm((form,), (), "w4a8", torch.bfloat16)
    planned = {key for portion in kernel_plan.plan_kernels(model, **where) for key in portion}
    before = set(launch._compiled)
    layout = kernel_plan._layout(form.layout)
    end = max(place.offset for place in layout.parts[0].slices.values()) + (1 << 20)
    x = torch.zeros(512, 3072, dtype=torch.bfloat16, device=GPU)
    bias = torch.zeros(3072, dtype=torch.bfloat16, device=GPU)
    kernel_plan.apply_blob(torch.zeros(end, dtype=torch.uint8, device=GPU), form.layout, bias, x, "w4a8")
    assert set(launch._compiled) - before <= planned
    assert not ahead._jobs
