"""`auto` on GPUs that nobody has timed: the ways to compute a model's layers are timed once, when it is loaded.

Which GPUs these are, the table says (Generation.evidence). The fastest mode that is at least as accurate as w4a4 is
chosen, and for each size of layer the fastest path of every mode is tried first. kernels/paths/contest.py holds the
clock; measurements.py keeps what came out, so that every later run does the same. A mode that the user chose stands.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..kernels.gpus import generation
from ..kernels.ladder import logger
from ..kernels.layer_call import Factors, LayerCall
from ..kernels.paths.contest import (
    AS_ACCURATE_AS_W4A4,
    OUT_OF_MEMORY,
    Clock,
    compile_at_once,
    contest,
    entrants,
    gpu_seconds,
)
from ..kernels.paths.measured_order import Sizes, sizes_of, try_first
from .gpu_machine import describe_gpu
from .layer import Part, QuantizedLayer
from .measurements import Record, attempt, keep, recall
from .quantized_model import QuantizedModel
from .runtime import resolve_compute, with_derived

TOKENS = 4096  # of a picture of 1024 x 1024
BUDGET = 3.0  # seconds for all turns of all sizes
PATIENCE = 20.0  # seconds for what kernels take to compile, once; most of them the model needs anyway
MOST_SIZES, SHARE = 6, 0.9  # sizes of layers that are timed, and of the model's products that they stand for, at least
TIE = 1.03  # who is less than this much faster is not: the table's order stands
ROOM = 3 << 29  # bytes of the GPU's memory that measuring may take
MEASURED = ("int4", "nvfp4")


@dataclass(frozen=True)
class Sample:
    """A size of layer that a model has, one part of that size, and how often it occurs."""

    sizes: Sizes
    part: Part
    count: int

    @property
    def work(self) -> int:
        return self.count * self.sizes.N * self.sizes.K


@dataclass(frozen=True)
class Choice:
    """What follows from times.

    Args:
        mode: the compute mode.
        paths: mode -> sizes in words -> name of the path to try first, where that is not the table's first.
        seconds: mode -> what all layers that were timed take in it, each in its fastest way.
    """

    mode: str
    paths: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def why_not_measured(precision: str, device: torch.device) -> str | None:
    """Why the table's choice stands on a device, in words; None if the ways to compute are to be timed."""
    if precision not in MEASURED:
        return "there is one mode for 8-bit weights"
    if device.type != "cuda":
        return "it is no GPU that torch can time"
    if generation(device).evidence.startswith("timed"):
        return f"its kind was {generation(device).evidence}"
    if torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is being captured"
    return None


def resolve_for_model(
    choice: str, model: QuantizedModel, device: torch.device, make_room: Callable[[int], None] = lambda _bytes: None
) -> tuple[str, str]:
    """runtime.resolve_compute for a model, with `auto` by measuring where no timing of the GPU is known.

    Args:
        choice: one of COMPUTE_CHOICES. device: what will run the model.
        make_room: called with the number of bytes that will be needed before anything is measured.
    """
    mode, reason = resolve_compute(choice, model.precision, device)
    if why_not_measured(model.precision, device) is not None:
        return mode, reason
    samples = samples_of(model, device)
    if not samples:
        return mode, reason
    record, name = recall(describe_gpu(device)), _name_of(samples)
    found, when = _recalled(record, name), "earlier"
    if found is None and choice == "auto":
        when = "now"
        with attempt(record, device) as allowed:
            if allowed:
                make_room(ROOM)
                found = measure(samples, device, model.half_dtype, record, mode, title=model.architecture.title)
    if found is None:
        return mode, reason if choice != "auto" else f"{reason}; measuring found nothing better"
    _install(found, samples, device)
    return (found.mode, f"measured on this GPU {when}: {words(found)}") if choice == "auto" else (mode, reason)


def describe_choices(device: torch.device) -> list[str]:
    """What was measured on a device for models that were loaded, in words, one line for each."""
    choices = recall(describe_gpu(device)).choices.values()
    found = [(raw["title"], Choice(raw["mode"], raw["paths"], raw["seconds"])) for raw in choices]
    return [f"{title or 'a model'}: {words(choice)}" for title, choice in found]


def words(choice: Choice) -> str:
    """The times of a choice in words, its mode first."""
    modes = sorted(choice.seconds, key=lambda mode: (mode != choice.mode, choice.seconds[mode]))
    times = ", ".join(f"{mode} {choice.seconds[mode] * 1e3:.1f} ms" for mode in modes)
    return f"{times} for the largest layers of a step, {TOKENS} tokens"


def _name_of(samples: Sequence[Sample]) -> str:
    """What a model's layers are called in the records: models of the same sizes share a choice."""
    return ", ".join(f"{sample.count} x {sample.sizes}" for sample in samples)


def _recalled(record: Record, name: str) -> Choice | None:
    raw = record.choices.get(name)
    if raw is None or raw["mode"] not in AS_ACCURATE_AS_W4A4:
        return None
    return Choice(raw["mode"], raw["paths"], raw["seconds"])


def _install(choice: Choice, samples: Sequence[Sample], device: torch.device) -> None:
    sizes = {str(sample.sizes): sample.sizes for sample in samples}
    for mode, paths in choice.paths.items():
        for text, path in paths.items():
            if text in sizes:
                try_first(device, sizes[text], mode, path)


def samples_of(model: QuantizedModel, device: torch.device) -> list[Sample]:
    """The sizes of a model's layers as they will run on a device, those with the most work first."""
    alike: dict[tuple, list[QuantizedLayer]] = {}
    for layer in model.layers.values():
        parts = tuple((p.scheme, p.rows, p.columns, p.act_unsigned, p.rank) for p in layer.parts)
        alike.setdefault((layer.in_features, layer.out_features, parts), []).append(layer)
    found: dict[Sizes, Sample] = {}
    for layers in alike.values():
        if all(part.scheme != model.precision for part in layers[0].parts):
            continue
        for part in with_derived(layers[0], "w4a8", device).parts:
            if part.scheme == model.precision:
                sizes = sizes_of(part.scheme, part.tensors, part.act_unsigned)
                count = len(layers) + (found[sizes].count if sizes in found else 0)
                found[sizes] = Sample(sizes, part, count)
    ordered = sorted(found.values(), key=lambda sample: (-sample.work, str(sample.sizes)))
    total, kept = sum(sample.work for sample in ordered), 0
    samples = []
    for sample in ordered[:MOST_SIZES]:
        if kept >= SHARE * total:
            break
        samples.append(sample)
        kept += sample.work
    return samples


def measure(
    samples: Sequence[Sample],
    device: torch.device,
    dtype: torch.dtype,
    record: Record,
    by_table: str,
    *,
    title: str = "",
    kept: bool = True,
    clock: Clock | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> Choice | None:
    """Time what is not in a record yet, and choose. None: no mode could be timed.

    Args:
        samples: of the model, those with the most work first. dtype: of activations, 16 bit.
        record: what is known of the machine; it is added to. by_table: the mode that the table chooses.
        title: of the model, for who reads the records. kept: whether later runs go by it.
        clock: as contest wants one; None: the GPU's. now: a clock of the wall, in seconds.
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    taking_part = entrants(samples[0].sizes.scheme, device, dtype)
    clock = clock or partial(gpu_seconds, device)
    logger.info(
        "No timing of this kind of GPU is known (%s, %s): the model's layers are tried once in each way that runs "
        "here, for at most %g s and what compiling takes: %s.",
        record.machine.get("gpu", device),
        record.machine.get("chip", "unknown"),
        BUDGET,
        ", ".join(map(str, taking_part)) or "there is none",
    )
    began, spent, on_disk = now(), 0.0, True
    missing = [sample for sample in samples if str(sample.sizes) not in record.times]
    with torch.inference_mode(), _current(device):
        calls = [meta_call(sample.part, dtype) for sample in missing]
        compile_at_once(calls, taking_part, device, PATIENCE)
        for index, sample in enumerate(missing):
            if spent >= BUDGET:
                break
            try:
                call = sample_call(sample.part, device, dtype)
            except torch.cuda.OutOfMemoryError:
                on_disk = False
                continue
            patience = max(0.0, PATIENCE - (now() - began - spent))
            budget = (BUDGET - spent) / (len(missing) - index)
            outcome = contest(call, taking_part, clock, budget=budget, patience=patience, now=now)
            spent += outcome.turning
            on_disk = on_disk and not any(
                entrant.mode == by_table and why == OUT_OF_MEMORY for entrant, why in outcome.out.items()
            )
            record.out[str(sample.sizes)] = {str(entrant): why for entrant, why in outcome.out.items()}
            if outcome.seconds:
                record.times[str(sample.sizes)] = {str(entrant): s for entrant, s in outcome.seconds.items()}
            for entrant, why in outcome.out.items():
                logger.debug("%s, %s: %s", sample.sizes, entrant, why)
    order = [str(entrant) for entrant in taking_part]
    choice = decide({str(s.sizes): s.count for s in samples}, record.times, order, by_table)
    if choice is not None:
        record.choices[_name_of(samples)] = {"title": title, **asdict(choice)}
    if kept:
        keep(record, on_disk=on_disk)
    found = "nothing" if choice is None else words(choice)
    logger.info("Measured in %.1f s, %.1f of them timing: %s.", now() - began, spent, found)
    return choice


def decide(
    counts: Mapping[str, int], times: Mapping[str, Mapping[str, float]], order: Sequence[str], by_table: str
) -> Choice | None:
    """The choice that follows from times; None where no mode has times of every size that was timed.

    Args:
        counts: sizes in words -> how many layers have them.
        times: sizes in words -> entrant in words -> seconds.
        order: the entrants in words, in the order of the table, also those without times.
        by_table: the mode that the table chooses, which wins ties.
    """
    counts = {sizes: count for sizes, count in counts.items() if times.get(sizes)}
    seconds: dict[str, float] = {}
    paths: dict[str, dict[str, str]] = {}
    for mode in sorted(AS_ACCURATE_AS_W4A4, key=lambda mode: mode != by_table):
        ways = [entrant for entrant in order if entrant.startswith(f"{mode} with ")]
        best = {sizes: _fastest({way: times[sizes].get(way) for way in ways}) for sizes in counts}
        if not best or None in best.values():
            continue
        seconds[mode] = sum(times[sizes][way] * counts[sizes] for sizes, way in best.items() if way)
        moved = {sizes: way.removeprefix(f"{mode} with ") for sizes, way in best.items() if way and way != ways[0]}
        if moved:
            paths[mode] = moved
    mode = _fastest(seconds)
    return None if mode is None else Choice(mode, paths, seconds)


def _fastest(seconds: Mapping[str, float | None]) -> str | None:
    """Whose time is the least; of those that are as good as equal the first."""
    best = None
    for name, taken in seconds.items():
        if taken is not None and (best is None or taken * TIE < (seconds[best] or 0.0)):
            best = name
    return best


def sample_call(part: Part, device: torch.device, dtype: torch.dtype) -> LayerCall:
    """A part's call on activations drawn as its smoothing expects them, many tokens."""
    tensors = {name: tensor.to(device) for name, tensor in part.tensors.items()}
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(TOKENS, part.in_features, generator=generator, device=device, dtype=torch.float32)
    x = torch.nn.functional.gelu(x) if part.act_unsigned else x * tensors["smooth_factor"].float()
    return _call(part, x.to(dtype), tensors)


def meta_call(part: Part, dtype: torch.dtype) -> LayerCall:
    """sample_call's call without any numbers, to be told what it would launch."""
    tensors = {name: tensor.to("meta") for name, tensor in part.tensors.items()}
    return _call(part, torch.empty(TOKENS, part.in_features, dtype=dtype, device="meta"), tensors)


def _call(part: Part, x: Tensor, tensors: dict[str, Tensor]) -> LayerCall:
    factors, bias = Factors(tensors["proj_down"], tensors["proj_up"]), x.new_zeros(part.out_features)
    return LayerCall(x, tensors, part.scheme, "w4a4", factors, bias, part.act_unsigned)


def _current(device: torch.device) -> AbstractContextManager:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
