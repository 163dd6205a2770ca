"""python dev.py evaluate --gate: compares recipes for quantizing on whole pictures, each with several seeds.

Every recipe quantizes the demo's FLUX several times, with other seeds and other recordings, and draws the same
captions from the same noise. Writes OUTPUT/gate.md (also printed) and OUTPUT/gate.json. To keep a GPU and the cores
beside it busy: torchrun --nproc-per-node N research/evaluate/start.py --gate (processes share a GPU).
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from command_line import typed
from torch import Tensor

from ...svdq_core.checkpoint.save import save_text
from ...svdq_core.errors import SVDQuantError
from ..evaluate.evaluated_scenes import evaluated_scenes
from ..evaluate.measures import relative_errors
from ..evaluate.network import flux_weights, latents_by_step, load_flux, with_layers
from ..evaluate.record import Records, to_lists
from ..evaluate.recorded_inputs import Source, collecting
from .gate_run import FORMS, GateRun, Recordings, median_layer_error
from .gate_table import gate_report
from .recipes import RECIPES, RECORDERS, Recipe

SUMMARY = "gate"  # of files in OUTPUT
PATIENCE = timedelta(minutes=20)
LAYER_TOKENS = 256  # of each input that layer errors are measured on
Work = tuple[str, str, int]  # recipe, format, replicate


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=f"{typed()} --gate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/evaluate"), help="folder for the table")
    parser.add_argument("--work", type=Path, help="folder for what the processes share (default: OUTPUT/gate)")
    only = "only these (default: all); NAME:FORMAT: only in that number format"
    parser.add_argument("--recipes", nargs="+", metavar="NAME", type=_asked, help=only)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="only these number formats")
    parser.add_argument("--replicates", type=int, default=4, help="seeds of quantization, each with its recording")
    parser.add_argument("--captions", type=int, default=48, help="held-out captions")
    parser.add_argument("--hard", type=int, default=24, help="held-out captions of the hard set")
    parser.add_argument("--calibration", type=int, default=64, help="training captions that are recorded")
    parser.add_argument("--steps", type=int, default=8, help="sampling steps")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start nothing further after this time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="that draws")
    parser.add_argument("--list", action="store_true", help="print the names of the recipes and stop")
    parser.add_argument(
        "--merge",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="gate.json of earlier runs, added to the table",
    )
    parser.add_argument("--report", action="store_true", help="only print the table of what OUTPUT holds")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what this process can claim; the first process prints the table."""
    options = parse(arguments)
    if options.list:
        print("\n".join(f"{name:16} {', '.join(r.forms):24} {r.origin:10} {r.title}" for name, r in RECIPES.items()))
        return 0
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    output = options.output.resolve()
    failed: list[str] = []
    if not options.report:
        if world > 1 and not dist.is_initialized():
            dist.init_process_group("gloo", timeout=PATIENCE)
        process = _Process(options, output, rank, world)
        process.measure()
        failed = process.failed
        process.meet()
    if rank == 0:
        print(_write_report(output, options.merge))
    if dist.is_initialized():
        dist.destroy_process_group()
    return 1 if failed else 0


def _asked(word: str) -> tuple[str, str]:
    """A recipe and a number format, "" for all of its formats."""
    name, _, form = word.partition(":")
    if name not in RECIPES or (form and form not in RECIPES[name].forms):
        raise argparse.ArgumentTypeError(f"{word!r} is no recipe. --list prints all of them and their formats.")
    return name, form


def chosen_recipes(asked: Sequence[tuple[str, str]]) -> dict[str, Recipe]:
    """The recipes by name, each in the formats that were asked for."""
    forms: dict[str, list[str]] = {}
    for name, form in asked:
        forms.setdefault(name, []).extend([form] if form else RECIPES[name].forms)
    return {name: replace(RECIPES[name], forms=tuple(dict.fromkeys(own))) for name, own in forms.items()}


def planned(chosen: dict[str, Recipe], forms: Sequence[str], replicates: int) -> Iterator[Work]:
    """What there is to do: every replicate of a recipe before the next recipe, so that what is done can be judged."""
    for name, recipe in chosen.items():
        for form in recipe.forms:
            if form in forms:
                yield from ((name, form, replicate) for replicate in range(replicates))


class _Process:
    """One process: the reference pictures and the runs that it claims."""

    def __init__(self, options: argparse.Namespace, output: Path, rank: int, world: int) -> None:
        self.options, self.output, self.rank, self.world = options, output, rank, world
        self.started, self.longest, self.failed = time.monotonic(), 0.0, list[str]()
        work = options.work.resolve() if options.work else output / SUMMARY
        self.records = Records(work, output)
        self.device = torch.device(options.device)
        if self.device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
            torch.cuda.set_device(self.device)
        # every recipe must see the same arithmetic as the reference, and nothing else may round
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.recordings = Recordings(work, RECORDERS, options.calibration, self.device)
        self.chosen = chosen_recipes(options.recipes or [(name, "") for name in RECIPES])
        self.scenes = evaluated_scenes(options.captions, options.hard, self.device)
        self.model, self.plain = load_flux(self.device), Source(flux_weights(), {})

    def meet(self) -> None:
        if self.world > 1:
            dist.barrier()

    def measure(self) -> None:
        """Record, then claim and measure until nothing is left or the time is over."""
        if self.rank == 0:
            self.records.clear()
        self.meet()
        self._record()
        with collecting(self.model, tokens=LAYER_TOKENS) as collector:
            self.reference = self._draw(self.model)
        self.unseen = {n: collector.statistics(n).tokens.to(self.device) for n in collector.names()}
        self.meet()
        if self.rank == 0:
            self._say(f"{len(self.scenes)} captions drawn, {self.options.replicates} recordings of each kind")
            save_text(self.output / f"{SUMMARY}_settings.json", json.dumps(self._settings()))
        for work in planned(self.chosen, self.options.forms, self.options.replicates):
            if self._seconds() + self.longest > self.options.seconds:
                self._say("time is over")
                return
            if self.records.claim(".".join(map(str, work))):
                self._try(work)

    def _record(self) -> None:
        kinds = dict.fromkeys(kind for recipe in self.chosen.values() for kind in recipe.recordings)
        todo = [(kind, replicate) for kind in kinds for replicate in range(self.options.replicates)]
        for kind, replicate in todo[self.rank :: self.world]:
            self.recordings.make(kind, replicate)

    def _try(self, work: Work) -> None:
        name, form, replicate = work
        begun = self._seconds()
        try:
            run = GateRun(form, replicate, self.recordings)
            layers = {n: layer.on(self.device) for n, layer in self.chosen[name].make(run).items()}
            quantized = self._seconds()
            errors = relative_errors(self._draw(with_layers(self.model, layers)), self.reference)
            found: dict[str, Any] = to_lists({"error": errors.cpu()})
            found["layer_error"] = median_layer_error(layers, self.unseen, self.plain)
        except (RuntimeError, ValueError, SVDQuantError) as error:
            self._say(f"{name} {form} FAILED: {error}")
            self.failed.append(name)
            return
        finally:
            self.longest = max(self.longest, self._seconds() - begun)
        found |= {"recipe": name, "form": form, "replicate": replicate, "seconds": round(quantized - begun, 2)}
        self.records.write(".".join(map(str, work)), found)
        self._say(
            f"{name} {form} {replicate}: latent error {float(errors.mean()):.4f}, quantized in {found['seconds']} s"
        )

    def _draw(self, model: torch.nn.Module) -> Tensor:
        *_, last = latents_by_step(model, self.scenes, self.scenes.noise, self.options.steps)
        return last

    def _settings(self) -> dict[str, Any]:
        device = torch.cuda.get_device_name() if self.device.type == "cuda" else f"CPU {platform.machine()}"
        own = {key: getattr(self.options, key) for key in ("captions", "hard", "steps", "calibration", "replicates")}
        return own | {"machine": f"{device}, torch {torch.__version__}", "work": str(self.records.work)}

    def _seconds(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic() - self.started

    def _say(self, text: str) -> None:
        print(f"[{self._seconds():6.1f} s] process {self.rank}: {text}", flush=True)


def _write_report(output: Path, earlier: Sequence[Path]) -> str:
    path = output / f"{SUMMARY}.json"
    own = output / f"{SUMMARY}_settings.json"
    settings = json.loads(own.read_text(encoding="utf-8")) if own.exists() else {"work": output}
    files = sorted((Path(settings["work"]) / "ways").glob("*.json"))
    if files:
        found = {"settings": settings, "runs": [json.loads(file.read_text(encoding="utf-8")) for file in files]}
    else:
        found = json.loads(path.read_text(encoding="utf-8"))
    for file in earlier:
        found = _merge(found, json.loads(file.read_text(encoding="utf-8")), file)
    save_text(path, json.dumps(found))
    text = gate_report(found["settings"], found["runs"])
    save_text(output / f"{SUMMARY}.md", text)
    return text


def _merge(found: dict[str, Any], other: dict[str, Any], file: Path) -> dict[str, Any]:
    """Both runs; what both measured is taken from the first.

    Raises:
        SVDQuantError: the other drew other captions, or another recording.
    """
    for key in ("captions", "hard", "steps", "calibration", "machine"):
        own, others = found["settings"][key], other["settings"][key]
        if own != others:
            raise SVDQuantError(f"{file}: {key} {others}, here {own}. Only runs of the same settings can be compared.")
    runs = {(run["recipe"], run["form"], run["replicate"]): run for run in (*other["runs"], *found["runs"])}
    return {"settings": found["settings"], "runs": list(runs.values())}
