"""The contest of paths: medians of turns, who is out and why, how long it may take. Clocks are faked."""

import pytest
import torch
from compare import relative_rms_error
from layer_calls import layer_call
from problems import int4_layer, nvfp4_layer

from svdquant_pack.kernels.gpus import GENERATIONS
from svdquant_pack.kernels.paths import contest as contests
from svdquant_pack.kernels.paths import kitchen, on_cpu, path
from svdquant_pack.kernels.paths.contest import AS_ACCURATE_AS_W4A4, Entrant, contest, entrants
from svdquant_pack.kernels.paths.path import Path

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Way(Path):
    """The reference under another name, which may fail or be wrong; each call moves the wall clock."""

    serves = frozenset()

    def __init__(self, name, *, fails=None, wrong=False, takes=0.0, wall=None):
        self.name, self.fails, self.wrong, self.takes, self.wall = name, fails, wrong, takes, wall

    def run(self, call):
        if self.wall is not None:
            self.wall.time += self.takes
        if self.fails is not None:
            raise self.fails
        out = on_cpu.compute(call)
        return -out if self.wrong else out


class Wall:
    """A clock of the wall that only moves when it is told to."""

    time = 0.0

    def __call__(self):
        return self.time


@pytest.fixture
def call():
    torch.manual_seed(0)
    tensors = int4_layer(128, 128, 16, torch.bfloat16, CPU)
    return layer_call(torch.randn(96, 128).bfloat16(), tensors, "int4", "w4a4")


def hold(call, ways, seconds, *, wall=None, budget=3.0, patience=20.0, mode="w4a8"):
    """A contest of ways; `seconds` of a name: what each of its turns takes, the last one from then on."""
    wall, taken, turning = wall or Wall(), {name: list(each) for name, each in seconds.items()}, []

    def clock(run):
        way = run.func.__self__
        turning.append(way.name)
        each = taken[way.name]
        second = each.pop(0) if len(each) > 1 else each[0]
        wall.time += second
        run()
        return second

    outcome = contest(call, [Entrant(mode, way) for way in ways], clock, budget=budget, patience=patience, now=wall)
    return {e.path.name: s for e, s in outcome.seconds.items()}, outcome, turning


def test_the_median_of_interleaved_turns_counts(call):
    ways = Way("a"), Way("b")
    seconds, _, turning = hold(call, ways, {"a": [0.9, 0.01, 0.03, 0.02, 0.02], "b": [0.05]})
    assert seconds == {"a": 0.02, "b": 0.05}
    assert turning[:6] == ["a", "b"] * 3 and len(turning) == 2 * contests.TURNS


def test_what_fails_is_out_with_its_sentence(call):
    ways = Way("broken", fails=RuntimeError("no kernel image\nmore")), Way("wrong", wrong=True), Way("sound")
    seconds, outcome, _ = hold(call, ways, {"sound": [0.1]})
    why = {entrant.path.name: text for entrant, text in outcome.out.items()}
    assert seconds == {"sound": 0.1}
    assert why["broken"] == "it failed (RuntimeError: no kernel image)"
    assert why["wrong"].startswith("it computes wrong values (error 2")


def test_memory_that_ran_out_is_told_apart(call):
    ways = Way("large", fails=torch.cuda.OutOfMemoryError("CUDA out of memory")), Way("small")
    seconds, outcome, _ = hold(call, ways, {"small": [0.1]})
    assert list(seconds) == ["small"] and list(outcome.out.values()) == [contests.OUT_OF_MEMORY]


def test_what_fails_in_a_later_turn_is_out(call):
    class Once(Way):
        def run(self, call):
            self.fails, before = RuntimeError("later"), self.fails
            if before is not None:
                raise before
            return on_cpu.compute(call)

    seconds, outcome, _ = hold(call, [Once("once"), Way("sound")], {"once": [0.1], "sound": [0.1]})
    assert list(seconds) == ["sound"] and list(outcome.out.values()) == ["it failed (RuntimeError: later)"]


def test_the_budget_ends_the_turns(call):
    wall = Wall()
    seconds, outcome, turning = hold(call, [Way("a"), Way("b")], {"a": [1.2], "b": [1.0]}, wall=wall)
    assert turning == ["a", "b", "a"] and wall.time == pytest.approx(3.4) == outcome.turning
    assert seconds == {"a": 1.2, "b": 1.0}


def test_who_gets_no_turn_is_out(call):
    seconds, outcome, _ = hold(call, [Way("a"), Way("b")], {"a": [5.0], "b": [1.0]})
    assert seconds == {"a": 5.0} and list(outcome.out.values()) == ["no time was left for it"]


def test_compiling_is_outside_the_clock_and_bounded(call):
    wall = Wall()
    ways = [Way("first", takes=15, wall=wall), Way("second", takes=15, wall=wall), Way("third", wall=wall)]
    seconds, outcome, _ = hold(call, ways, {"first": [0.1], "second": [0.2]}, wall=wall, budget=1e3)
    assert seconds == {"first": 0.1, "second": 0.2}
    assert list(outcome.out.values()) == ["compiling the others took too long"]


def test_a_path_that_cannot_take_the_size_says_why(call):
    rankless = layer_call(call.x, int4_layer(128, 128, 0, torch.bfloat16, CPU), "int4", "w4a4")
    _, outcome, _ = hold(rankless, [kitchen.Kitchen()], {}, mode="w4a4")
    assert "rank 0" in next(iter(outcome.out.values()))


@pytest.mark.parametrize("make", [int4_layer, nvfp4_layer])
def test_every_mode_that_takes_part_is_as_accurate_as_w4a4(make):
    """The table's promise, by the reference, on ordinary and on long-tailed activations."""
    torch.manual_seed(0)
    scheme, tensors = make.__name__.removesuffix("_layer"), make(256, 512, 16, torch.bfloat16, CPU)
    plain = torch.randn(128, 512)
    for x in (plain, plain * (torch.rand(512) * 3).exp()):
        call = layer_call(x.bfloat16(), tensors, scheme, "w4a4")
        exact = on_cpu.compute(layer_call(x.bfloat16().float(), tensors, scheme, "w4a16"))
        of = {mode: on_cpu.compute(layer_call(call.x, tensors, scheme, mode)) for mode in AS_ACCURATE_AS_W4A4}
        errors = {mode: relative_rms_error(out, exact) for mode, out in of.items()}
        assert max(errors, key=errors.__getitem__) == "w4a4", errors


@pytest.mark.parametrize(
    ("problem", "names"),
    [
        (None, {"w4a8 with int8 tensor cores", "w4a16 with 16-bit tensor cores", "w4a16 with plain torch"}),
        ("Triton is not installed", {"w4a8 with plain torch", "w4a16 with plain torch"}),
    ],
)
def test_who_takes_part(problem, names, monkeypatch):
    for module in (contests, path):
        monkeypatch.setattr(module, "why_no_triton", lambda _device: problem)
    row = next(row for row in GENERATIONS if row.name == "sm_120")
    monkeypatch.setattr(path, "generation", lambda _device: row)
    found = {str(entrant) for entrant in entrants("int4", GPU, torch.bfloat16)}
    assert names <= found
    assert not any("w4a4 with plain torch" in name or "pass over" in name for name in found)


def test_kernels_of_all_entrants_are_compiled_at_once(monkeypatch):
    """What they would launch for many tokens, told by a dry run; nothing waits for what takes too long."""
    row = next(row for row in GENERATIONS if row.name == "sm_120")
    for module in (contests, path):
        monkeypatch.setattr(module, "why_no_triton", lambda _device: None)
        monkeypatch.setattr(module, "generation", lambda _device: row)
    monkeypatch.setattr(contests, "processors", lambda _device: 100)
    monkeypatch.setattr(contests, "threads", lambda: 2)
    wanted = {}

    def line_up(found, _device, batch):
        wanted.update(found)
        batch.left += 1  # never done

    monkeypatch.setattr(contests, "compile_ahead", line_up)
    # kernels of the interpreter know nothing of what they are compiled for
    monkeypatch.setattr("svdquant_pack.kernels.launching.launch.launch_key", lambda kernel, *_: (id(kernel),))
    tensors = {name: t.to("meta") for name, t in int4_layer(256, 256, 16, torch.bfloat16, CPU).items()}
    call = layer_call(torch.empty(512, 256, dtype=torch.bfloat16, device="meta"), tensors, "int4", "w4a4")
    contests.compile_at_once([call], entrants("int4", GPU, torch.bfloat16), GPU, 0.01)
    names = {one.kernel.fn.__name__ for one in wanted.values()}
    assert {"_gemm_w4a4_kernel", "_gemm_w4a8_kernel", "_gemm_w4a8_by_torch_kernel", "_dequantize_kernel"} <= names


def test_what_cannot_be_planned_is_left_to_the_contest(monkeypatch):
    def fail(_device):
        raise RuntimeError("no such device")

    monkeypatch.setattr(contests, "why_no_triton", lambda _device: None)
    monkeypatch.setattr(contests, "threads", lambda: 2)
    monkeypatch.setattr(contests, "processors", fail)
    contests.compile_at_once([], [], GPU, 20.0)  # returns at once
