"""A quantized file whose layers were refined, block after block: quantize into a draft, train, put together.

What a block became goes to the journal: the tensors that moved, a few percent of the file. An interrupted run goes on
from there, through the same inputs, to the same bytes.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.container import Checkpoint
from ..checkpoint.dialects import find_dialect
from ..checkpoint.output import Output
from ..checkpoint.read_plan import Entry, Plan
from ..checkpoint.save import require_space
from ..checkpoint.stream import write_stream
from ..layer import Part, QuantizedLayer
from ..quantized_model import QuantizedModel
from .journal import Journal
from .model_plan import ModelPlan
from .one_layer import PartReport
from .refine import RefineSpec
from .refine_block import BlockRuns, refine_block
from .refine_layer import make_trainable, on_device
from .room import attempt
from .share import Share
from .to_file import Outcome, QuantizeJob, quantize_to_file
from .whole_model import BlockWeights

DRAFT = "draft"  # suffix of the file that is refined, and its entry in the journal
MOVED = ("wscales", "wcscales", "proj_down", "proj_up")  # tensors of a part that training changes
_BIAS = "bias"

# weights on the device of the run -> forwards of the full-precision model
RunsOf = Callable[[Mapping[str, Tensor]], BlockRuns]


@dataclass(frozen=True)
class BlockReport:
    """What training did for one block.

    Args:
        block: its name. before, after: mean loss on samples held out, 1 being that of the first ones.
        kept: whether the trained layers are in the file; they are where they are better.
    """

    block: str
    before: float
    after: float
    kept: bool

    @property
    def factor(self) -> float:
        """What is left of the error of the block's output."""
        return (self.after / self.before) ** 0.5 if self.kept and self.before > 0 else 1.0


def quantize_refined(
    job: QuantizeJob,
    runs: RunsOf,
    spec: RefineSpec,
    *,
    on_layer: Callable[[int, int, str], None] = lambda *step: None,
    on_step: Callable[[int, int, str], None] = lambda *step: None,
    share: Share | None = None,
) -> tuple[Outcome | None, list[BlockReport]]:
    """Quantize a model into a file, then train what the format lets move.

    Args:
        job: of the quantizer, with the method that refining begins from.
        runs: makes the forwards that the blocks are trained in.
        on_layer: as quantize_to_file.
        on_step: called with the steps of training that are done, all of them, and the block; what it raises ends the
            run, and the same call goes on from the last block that was finished.
        share: as quantize_to_file; the blocks follow from each other, so the first process alone trains them.

    Returns:
        What came of it (None for any but the first process), and a report for each block that ran.

    Raises:
        SVDQuantError: see quantize_to_file and refine(). An older file of the target's name is left as it was.
    """
    journal = Journal(job.target, f"{job.fingerprint}; {spec}")
    draft, share = job.target.with_name(f"{job.target.name}.{DRAFT}"), share or Share()
    if not share.first:
        share.wait()  # until the first has looked for a draft
        if not _has_draft(journal, draft):
            quantize_to_file(replace(job, target=draft), on_layer, share)
        return None, []
    with journal.locked():
        drafted = _has_draft(journal, draft)
        share.wait()
        if not drafted:
            outcome = quantize_to_file(replace(job, target=draft), on_layer, share)
            assert outcome is not None, "the first process puts together"
            journal.put(DRAFT, {}, outcome.reports, json.dumps([outcome.kept, outcome.notes, outcome.resumed]))
        checkpoint = Checkpoint(draft)
        try:
            plan = find_dialect(checkpoint).read_plan(checkpoint)
            reports = _train(job, runs, spec, plan, journal=journal, on_step=on_step)
            outcome = _put_together(job, spec, plan, journal, reports)
        finally:
            checkpoint.release()
        journal.remove()
        with suppress(OSError):
            draft.unlink()
    return outcome, reports


def _has_draft(journal: Journal, draft: Path) -> bool:
    return DRAFT in journal.names() and draft.exists()


def _train(
    job: QuantizeJob,
    runs_of: RunsOf,
    spec: RefineSpec,
    plan: Plan,
    *,
    journal: Journal,
    on_step: Callable[[int, int, str], None],
) -> list[BlockReport]:
    """Fill the journal with all blocks; reports in the order in which they run."""
    layers_of = _layers_by_block(job.plan, plan)
    held = BlockWeights(job.weights, job.device, {layer.name: layer.block for layer in job.plan})
    dtype = torch.bfloat16 if job.device.type == "cuda" else torch.float32
    reports, total, done = [], spec.steps * len(layers_of), journal.names()
    # ComfyUI's nodes run in a mode whose tensors know no gradients
    with torch.inference_mode(False), torch.enable_grad():
        runs = runs_of(held)
        try:
            while (block := attempt(lambda _: runs.advance(), job.device, job.make_room, "", False)) is not None:
                names = layers_of.get(block, [])
                if not names:
                    runs.leave({})
                    continue
                layers = {name: on_device(_layer(plan, name), job.device) for name in names}
                before = spec.steps * len(reports)
                if block in done:
                    report, layers = _restore(journal, block, layers)
                    modules = dict(make_trainable(layers, dtype, spec.bits))
                else:

                    def step(count: int, _: int, before: int = before, block: str = block) -> None:
                        job.poll()
                        on_step(before + count, total, block)

                    def train(_: torch.device, block: str = block, layers=layers, step=step):
                        return refine_block(runs.here(), layers, spec, block, dtype=dtype, on_step=step)

                    refined, modules = attempt(train, job.device, job.make_room, block, anywhere=False)
                    report = BlockReport(block, refined.before, refined.after, refined.kept)
                    journal.put(block, _moved(refined.layers) if report.kept else {}, kept=json.dumps(asdict(report)))
                reports.append(report)
                on_step(spec.steps * len(reports), total, block)
                runs.leave(modules)
        finally:
            runs.close()
    return reports


def _layers_by_block(planned: ModelPlan, plan: Plan) -> dict[str, list[str]]:
    """Block -> layers that the draft holds quantized."""
    hosts = plan.hosts
    found = {block: [layer.name for layer in layers if layer.name in hosts] for block, layers in planned.blocks.items()}
    return {block: names for block, names in found.items() if names}


def _layer(plan: Plan, name: str) -> QuantizedLayer:
    entry = plan.piece(name)
    assert isinstance(entry, QuantizedLayer), f"{name} is not quantized"
    return entry


def _moved(layers: Mapping[str, QuantizedLayer]) -> dict[str, Tensor]:
    """What training changed, by names of their own."""
    found = {}
    for name, layer in layers.items():
        for index, part in enumerate(layer.parts):
            found |= {f"{name}.{index}.{key}": part[key].cpu() for key in MOVED if key in part.tensors}
        if layer.bias is not None:
            found[f"{name}.{_BIAS}"] = layer.bias.cpu()
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _restore(
    journal: Journal, block: str, layers: Mapping[str, QuantizedLayer]
) -> tuple[BlockReport, dict[str, QuantizedLayer]]:
    """A block as an earlier run left it; layers as the draft holds them, on any device."""
    stored = journal.get(block)
    report = BlockReport(**json.loads(stored.kept))
    moved = {output.name: output for output in stored.outputs}
    if not moved:
        return report, dict(layers)
    return report, {name: _with_moved(name, layer, moved) for name, layer in layers.items()}


def _with_moved(name: str, layer: QuantizedLayer, moved: Mapping[str, Output]) -> QuantizedLayer:
    parts = []
    for index, part in enumerate(layer.parts):
        tensors, device = dict(part.tensors), part["qweight"].device
        found = {key: moved[f"{name}.{index}.{key}"] for key in MOVED if f"{name}.{index}.{key}" in moved}
        if "wcscales" in found:
            tensors.pop("wtscale", None)  # it is in them
        parts.append(replace(part, tensors=tensors | {key: out.tensor().to(device) for key, out in found.items()}))
    bias = moved.get(f"{name}.{_BIAS}")
    return replace(
        layer,
        parts=tuple(parts),
        bias=layer.bias if bias is None or layer.bias is None else bias.tensor().to(layer.bias.device),
    )


def _put_together(
    job: QuantizeJob, spec: RefineSpec, plan: Plan, journal: Journal, reports: list[BlockReport]
) -> Outcome:
    block_of = {layer.name: layer.block for layer in job.plan if layer.block in {r.block for r in reports}}
    form, made_of = job.open_format(), {report.block: journal.get(report.block) for report in reports}
    moved = {block: {output.name: output for output in stored.outputs} for block, stored in made_of.items()}

    def entries() -> Iterator[tuple[str, Entry]]:
        for host, entry in plan.entries():
            changed = moved.get(block_of.get(host, ""))
            if isinstance(entry, QuantizedLayer) and changed:
                entry = _with_moved(host, entry, changed)
            yield host, entry

    outline, announced = QuantizedModel(plan.architecture), []
    for host, entry in entries():
        announced += [Output(o.name, o.shape, o.dtype, tuple) for o in form.outputs(host, entry)]
        if isinstance(entry, QuantizedLayer):
            outline.layers[host] = _outline(entry)
        else:
            outline.plain[host] = entry.to("meta")
    form.finish()

    def made() -> Iterator[Output]:
        job.verify()
        for host, entry in entries():
            yield from form.outputs(host, entry)

    nbytes = sum(output.nbytes for output in announced)
    require_space(job.target, nbytes)
    metadata = form.metadata(outline) | dict(job.metadata) | {"svdquant_refined": describe(spec, reports)}
    write_stream(job.target, announced, metadata, made())
    stored = journal.get(DRAFT)
    kept, notes, resumed = json.loads(stored.kept)
    part_reports: list[PartReport] = list(stored.reports)
    return Outcome(part_reports, kept, notes, resumed, len(announced), nbytes, 0.0)


def _outline(layer: QuantizedLayer) -> QuantizedLayer:
    parts = tuple(
        Part(p.scheme, p.rows, p.columns, p.act_unsigned, {n: t.to("meta") for n, t in p.tensors.items()})
        for p in layer.parts
    )
    return replace(layer, parts=parts, bias=None if layer.bias is None else layer.bias.to("meta"), arena=None)


def describe(spec: RefineSpec, reports: list[BlockReport]) -> str:
    """What was done, for the file's metadata and for the user."""
    factors = [report.factor for report in reports]
    mean = sum(factors) / max(1, len(factors))
    settings = ", ".join(f"{key} {value}" for key, value in asdict(spec).items())
    return (
        f"{sum(r.kept for r in reports)} of {len(reports)} blocks, error of their outputs x {mean:.3f} "
        f"on inputs held out; {settings}"
    )
