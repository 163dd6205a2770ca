"""python dev.py evaluate: measures every way to quantize the demo's FLUX against the unquantized model.

Writes OUTPUT/evaluation.md with the tables, OUTPUT/results.json with every figure of every caption, and two plots. With
several GPUs, or to keep one busy: torchrun --nproc-per-node N research/evaluate/start.py (several processes may share
a GPU). With --gate: recipes for quantizing against each other, fast, and with what other seeds would change
(--gate --help).
"""

import argparse
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from command_line import typed
from torch import Tensor

from ...demo.install import LORA
from ...svdq_core.errors import SVDQuantError
from .evaluated_scenes import Scenes, evaluated_scenes
from .evaluation_report import write_report
from .linears import add_lora
from .measures import Figures, PlainDrawings, SceneJudge, lora_effect
from .methods import Way, ways
from .network import Flux, block_linears, load_flux, lora_factors, with_layers
from .quantizing import quantized_layers
from .record import REFERENCE, RESEED, Records, to_lists
from .recorded_inputs import Source, record, record_noise

STEPS = (20, 4)
HARD_SHARE = 4  # one hard caption for so many others
CALIBRATION_CAPTIONS = 64
PATIENCE = timedelta(minutes=20)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=typed(), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/evaluate"), help="folder for tables and figures")
    parser.add_argument("--captions", type=int, default=256, help="held-out captions; a quarter as many hard ones")
    parser.add_argument("--calibration", type=int, default=CALIBRATION_CAPTIONS, help="training captions to record")
    parser.add_argument("--work", type=Path, help="folder for what the processes share (default: OUTPUT/work)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no further method after this time")
    parser.add_argument("--ways", nargs="+", metavar="WORD", help="only methods whose name holds one of these words")
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS), help="sampling steps to measure at")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--list", action="store_true", help="print the names of the methods and stop")
    parser.add_argument("--report", action="store_true", help="only write tables and plots of what OUTPUT holds")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what this process can claim; the first process writes the report."""
    options = parse(arguments)
    if options.list:
        print("\n".join(f"{way.name:44} {way.label:12} rank {way.rank:3}  {way.title}" for way in ways()))
        return 0
    started = time.monotonic()
    output = options.output.resolve()
    records = Records(options.work.resolve() if options.work else output / "work", output)
    failed: list[str] = []
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not options.report:
        if world > 1:
            dist.init_process_group("gloo", timeout=PATIENCE)
        if rank == 0:
            records.clear()
        _meet(world)
        bench = _Bench(options, records, rank, world, started)
        bench.run()
        failed = bench.failed
        _meet(world)
    if rank == 0:
        for path in write_report(output):
            print(path)
    if dist.is_initialized():
        dist.destroy_process_group()
    return 1 if failed else 0


def _meet(world: int) -> None:
    if world > 1:
        dist.barrier()


@dataclass(frozen=True)
class _Drawn:
    """The unquantized model's pictures with and without the LoRA, for one number of steps."""

    plain: PlainDrawings
    with_lora: PlainDrawings | None


class _Bench:
    """One process: the model, its reference pictures, and the methods it claims."""

    def __init__(self, options: argparse.Namespace, records: Records, rank: int, world: int, started: float) -> None:
        self.options, self.records, self.started = options, records, started
        self.rank, self.world = rank, world
        self.device = torch.device(options.device)
        if self.device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
            torch.cuda.set_device(self.device)
        # every method must see the same arithmetic as the reference, and nothing else may round
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        self.scenes: Scenes = evaluated_scenes(options.captions, options.captions // HARD_SHARE, self.device)
        self.model: Flux = load_flux(self.device)
        self.judge = SceneJudge(self.device)
        self.lora = {n: (d.to(self.device), u.to(self.device)) for n, (d, u) in lora_factors().items()}
        self.longest = 0.0
        self.failed: list[str] = []

    def run(self) -> None:
        """Claim and measure until nothing is left or the time is over."""
        source, noise = record(self.options.calibration, self.device), record_noise(self.device)
        path = self.records.work / "reference.pt"
        if self.rank == 0:
            drawn = self._draw_reference()
            if self.world > 1:
                torch.save(drawn, path)
        _meet(self.world)
        if self.rank > 0:
            drawn = torch.load(path, map_location=self.device, weights_only=False)  # written a moment ago, by rank 0
        _meet(self.world)
        if self.rank == 0:
            path.unlink(missing_ok=True)
            self._write_reference(drawn)
        self._say(f"reference pictures and {len(source.inputs)} recorded inputs")
        for way in ways():
            if self.options.ways and not any(word in way.name for word in self.options.ways):
                continue
            if self._seconds() + self.longest > self.options.seconds:
                self._say("time is over")
                return
            if self.records.claim(way.name):
                begun = self._seconds()
                try:
                    self._measure(way, (source, noise), drawn)
                except (RuntimeError, ValueError, SVDQuantError) as error:
                    self._say(f"{way.name} FAILED: {error}")
                    self.failed.append(way.name)
                self.records.publish()
                self.longest = max(self.longest, self._seconds() - begun)

    def _draw_reference(self) -> dict[int, _Drawn]:
        adapted, first = self._with_lora(self.model), self.options.steps[0]
        return {
            steps: _Drawn(
                self.judge.reference(self.model, self.scenes, steps),
                self.judge.reference(adapted, self.scenes, steps) if steps == first else None,
            )
            for steps in self.options.steps
        }

    def _with_lora(self, model: Flux) -> Flux:
        linears = {n: model.get_submodule(n) for n in self.lora}
        return with_layers(model, {n: add_lora(linears[n], *factors) for n, factors in self.lora.items()})

    def _measure(self, way: Way, sources: tuple[Source, Source], drawn: dict[int, _Drawn]) -> None:
        begun = self._seconds()
        layers = quantized_layers(way, *sources)
        missing = block_linears(self.model).keys() - layers.keys()
        if layers and missing and way.kind != "modulation":
            raise ValueError(f"{way.name}: {sorted(missing)[0]} and {len(missing) - 1} more layers were not quantized.")
        quantized = self._seconds()
        model = with_layers(self.model, {name: layer.on(self.device) for name, layer in layers.items()})
        half = way.kind == "arithmetic"
        found: dict[str, Any] = {"label": way.label, "title": way.title, "rank": way.rank, "steps": {}}
        for steps, reference in drawn.items():
            figures, latents = self.judge.compare(model, self.scenes, self.scenes.noise, reference.plain, half)
            found["steps"][str(steps)] = to_lists(figures)
            if way.has_lora and reference.with_lora is not None:
                found["lora"] = to_lists(self._lora_figures(model, latents, reference))
        found["seconds"] = {"quantizing": round(quantized - begun, 2), "drawing": round(self._seconds() - quantized, 2)}
        self.records.write(way.name, found)
        errors = torch.tensor([found["steps"][str(s)]["error"] for s in drawn]).mean(dim=1).tolist()
        self._say(f"{way.name}: latent error {', '.join(f'{e:.4f}' for e in errors)} ({found['seconds']})")

    def _lora_figures(self, model: Flux, plain: Tensor, reference: _Drawn) -> Figures:
        assert reference.with_lora is not None
        figures, latents = self.judge.compare(
            self._with_lora(model), self.scenes, self.scenes.noise, reference.with_lora, half=False
        )
        return figures | lora_effect(plain, latents, reference.plain.latents[-1], reference.with_lora.latents[-1])

    def _write_reference(self, drawn: dict[int, _Drawn]) -> None:
        """What the unquantized model itself reaches, with its LoRA, and from other noise: how far seeds are apart."""
        own: dict[str, Any] = {"machine": self._machine(), "captions": self.scenes.captions.texts(), "lora_file": LORA}
        own |= {"is_hard": self.scenes.is_hard.tolist(), "calibration": self.options.calibration, "steps": {}}
        other: dict[str, Any] = {"steps": {}}
        for steps, reference in drawn.items():
            own["steps"][str(steps)] = to_lists(self.judge.verdict(reference.plain.pictures, self.scenes))
            if reference.with_lora is not None:
                own["lora"] = to_lists(self.judge.verdict(reference.with_lora.pictures, self.scenes))
            figures, _ = self.judge.compare(self.model, self.scenes, self.scenes.other_noise, reference.plain)
            other["steps"][str(steps)] = to_lists(figures)
        self.records.write(REFERENCE, own)
        self.records.write(RESEED, other)
        self.records.publish()

    def _machine(self) -> str:
        device = torch.cuda.get_device_name() if self.device.type == "cuda" else f"CPU {platform.machine()}"
        return f"{device}, torch {torch.__version__}, Python {platform.python_version()}"

    def _seconds(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic() - self.started

    def _say(self, text: str) -> None:
        print(f"[{self._seconds():6.1f} s] process {self.rank}: {text}", flush=True)
