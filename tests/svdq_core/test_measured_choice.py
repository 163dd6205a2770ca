"""`auto` by measuring: the fastest wins, ties keep the table's order, what was found stands in later runs. No GPU."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from measured_ways import MACHINE, Way
from tiny_files import DATA

from svdquant_pack.kernels.gpus import GENERATIONS
from svdquant_pack.kernels.paths import contest, measured_order, on_cpu
from svdquant_pack.kernels.paths.contest import Entrant
from svdquant_pack.kernels.paths.measured_order import LEAST_TOKENS, in_measured_order
from svdquant_pack.svdq_core import measured_choice, measurements
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.measured_choice import decide, resolve_for_model, sample_call, samples_of, why_not_measured

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
ORDER = ["w4a4 with A", "w4a4 with B", "w4a8 with C", "w4a16 with D"]


@pytest.fixture(scope="module")
def model():
    return read_checkpoint(Checkpoint(DATA / "flux_tiny_int4_r32.safetensors"))


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A machine whose only device pretends to be a GPU that nobody has timed; clocks are faked.

    Returns:
        make(seconds by entrant in words, failing names) -> list that grows by each turn.
    """
    monkeypatch.setattr(measured_choice, "TOKENS", 64)
    monkeypatch.setattr(measured_choice, "why_not_measured", lambda *_: None)
    monkeypatch.setattr(
        measured_choice, "resolve_compute", lambda choice, *_: ("w4a4" if choice == "auto" else choice, "by the table")
    )
    monkeypatch.setattr(measured_choice, "describe_gpu", lambda _device: dict(MACHINE))
    monkeypatch.setattr(measurements, "default_path", lambda: tmp_path / "measurements.json")
    monkeypatch.setattr(measurements, "_of_this_process", {})
    monkeypatch.setattr(measured_order, "_first", {})

    def make(seconds, failing=()):
        ways = [tuple(name.split(" with ")) for name in ORDER]
        every = [Entrant(mode, Way(name, name in failing)) for mode, name in ways]
        turns = []

        def clock(_device, run):
            name = run.func.__self__.name
            turns.append(name)
            return seconds[name]

        monkeypatch.setattr(measured_choice, "entrants", lambda *_: every)
        monkeypatch.setattr(measured_choice, "gpu_seconds", clock)
        return turns

    make.path = tmp_path / "measurements.json"
    make.restart = lambda: (measurements._of_this_process.clear(), measured_order._first.clear())
    return make


def test_the_fastest_mode_wins_and_says_so(gpu, model, caplog):
    gpu({"A": 0.004, "B": 0.005, "C": 0.001, "D": 0.01})
    with caplog.at_level(logging.INFO, "svdquant"):
        mode, reason = resolve_for_model("auto", model, CPU)
    assert mode == "w4a8"
    assert reason.startswith("measured on this GPU now: w4a8 ") and "w4a4 " in reason and "w4a16 " in reason
    assert "No timing of this kind of GPU is known (Some GPU, sm_89)" in caplog.text and "at most 3 s" in caplog.text


def test_a_tie_keeps_the_tables_mode(gpu, model):
    gpu({"A": 0.00102, "B": 0.5, "C": 0.001, "D": 0.00101})
    assert resolve_for_model("auto", model, CPU)[0] == "w4a4"


def test_a_failing_path_is_out(gpu, model):
    gpu({"A": 0.001, "B": 0.5, "C": 0.01, "D": 0.02}, failing=["A"])
    assert resolve_for_model("auto", model, CPU)[0] == "w4a8"
    out = next(iter(json.loads(gpu.path.read_text())["machines"].values()))["out"]
    assert all(why == {"w4a4 with A": "it failed (RuntimeError: no such instruction)"} for why in out.values())


def test_where_everything_fails_the_table_stands(gpu, model):
    gpu({}, failing="ABCD")
    mode, reason = resolve_for_model("auto", model, CPU)
    assert mode == "w4a4" and reason.startswith("by the table; measuring found nothing better")


def test_a_later_run_reads_what_was_found(gpu, model):
    gpu({"A": 0.004, "B": 0.002, "C": 0.009, "D": 0.01})
    first = resolve_for_model("auto", model, CPU)
    gpu.restart()
    turns = gpu({"A": 0.001, "B": 0.001, "C": 0.001, "D": 0.001})
    again = resolve_for_model("auto", model, CPU)
    assert not turns and again == (first[0], first[1].replace(" now: ", " earlier: "))


@pytest.mark.parametrize("name", ["driver", "torch", "triton", "pack"])
def test_another_version_measures_anew(gpu, model, name, monkeypatch):
    gpu({"A": 0.004, "B": 0.004, "C": 0.001, "D": 0.01})
    resolve_for_model("auto", model, CPU)
    gpu.restart()
    monkeypatch.setitem(MACHINE, name, "another")
    assert gpu({"A": 0.001, "B": 0.004, "C": 0.01, "D": 0.01}) == []
    assert resolve_for_model("auto", model, CPU)[0] == "w4a4"


def test_a_damaged_file_is_measured_anew(gpu, model):
    gpu({"A": 0.004, "B": 0.004, "C": 0.001, "D": 0.01})
    gpu.path.write_text("{")
    assert resolve_for_model("auto", model, CPU)[0] == "w4a8"
    assert json.loads(gpu.path.read_text())["format"] == 1


def test_the_users_mode_stands_and_nothing_is_measured(gpu, model):
    turns = gpu({"A": 0.004, "B": 0.004, "C": 0.001, "D": 0.01})
    assert resolve_for_model("w4a16", model, CPU) == ("w4a16", "by the table")
    assert not turns and not gpu.path.exists()


def test_room_is_made_once_before_measuring(gpu, model):
    asked = []
    gpu({"A": 0.004, "B": 0.004, "C": 0.001, "D": 0.01})
    resolve_for_model("auto", model, CPU, asked.append)
    resolve_for_model("auto", model, CPU, asked.append)
    assert asked == [measured_choice.ROOM]


def test_three_seconds_are_held(gpu, model, monkeypatch):
    """Turns of a second each: the clock of the wall is moved by them, and stops them."""
    wall = [0.0]
    turns = gpu({})
    monkeypatch.setattr(
        measured_choice, "gpu_seconds", lambda *_: turns.append(1) or wall.__setitem__(0, wall[0] + 0.3) or 0.3
    )
    samples = samples_of(model, CPU)
    record = measurements.Record(dict(MACHINE))
    measured_choice.measure(samples, CPU, torch.bfloat16, record, "w4a4", now=lambda: wall[0])
    assert len(samples) > 2 and wall[0] <= measured_choice.BUDGET + len(samples) * 0.3


@pytest.mark.parametrize(("short", "kept"), [("A", False), ("D", True)])
def test_memory_that_the_tables_mode_lacked_is_not_kept_on_disk(short, kept, gpu, model, monkeypatch):
    """It may be there another time; what others lack, they will lack again on this GPU."""
    gpu({"A": 0.004, "B": 0.004, "C": 0.001, "D": 0.01})

    def run(way, call):
        if way.name == short:
            raise torch.cuda.OutOfMemoryError("full")
        return on_cpu.compute(call)

    monkeypatch.setattr(Way, "run", run)
    assert resolve_for_model("auto", model, CPU)[0] == "w4a8"
    assert gpu.path.exists() == kept


def test_the_fastest_path_of_a_mode_is_tried_first(gpu, model):
    gpu({"A": 0.004, "B": 0.001, "C": 0.009, "D": 0.01})
    assert resolve_for_model("auto", model, CPU)[0] == "w4a4"
    sample = samples_of(model, CPU)[0]
    few = sample_call(sample.part, CPU, torch.bfloat16)
    many = replace(few, x=few.x.repeat(LEAST_TOKENS // few.x.shape[0], 1))
    steps = [("A", Way("A")), ("B", Way("B"))]
    assert in_measured_order(steps, few) == steps
    assert in_measured_order(steps, many) == steps[::-1]
    assert in_measured_order(steps, replace(many, mode="w4a8")) == steps


def test_decide_leaves_out_a_mode_without_every_size():
    times = {"s": {"w4a4 with A": 1.0, "w4a8 with C": 0.1}, "t": {"w4a4 with A": 1.0}}
    choice = decide({"s": 1, "t": 1}, times, ORDER, "w4a4")
    assert choice.mode == "w4a4" and choice.seconds == {"w4a4": 2.0}


def test_decide_weighs_sizes_by_their_number():
    times = {"s": {"w4a4 with A": 1.0, "w4a8 with C": 2.0}, "t": {"w4a4 with A": 2.0, "w4a8 with C": 1.5}}
    assert decide({"s": 1, "t": 1}, times, ORDER, "w4a4").mode == "w4a4"
    assert decide({"s": 1, "t": 9}, times, ORDER, "w4a4").mode == "w4a8"


def test_the_largest_layers_stand_for_the_model(model):
    samples = samples_of(model, CPU)
    assert 0 < len(samples) <= measured_choice.MOST_SIZES
    assert [s.work for s in samples] == sorted((s.work for s in samples), reverse=True)
    assert all(sample.part.scheme == "int4" for sample in samples)


@pytest.mark.parametrize("row", GENERATIONS, ids=lambda row: row.name)
def test_only_gpus_without_a_timing_are_measured(row, monkeypatch):
    monkeypatch.setattr(measured_choice, "generation", lambda _device: row)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert (why_not_measured("int4", GPU) is None) == (not row.evidence.startswith("timed"))
    assert why_not_measured("int8", GPU) and why_not_measured("int4", CPU)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert why_not_measured("int4", GPU)


def test_modes_are_those_of_the_table():
    assert {name.split(" with ")[0] for name in ORDER} == set(contest.AS_ACCURATE_AS_W4A4)
