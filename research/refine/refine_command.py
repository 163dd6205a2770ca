"""python research/refine/refine_demo.py: how much refining takes off the error of the demo's FLUX, by format and way.

Quantizes with `best` and recorded inputs, refines as each recipe says on training captions, rounds everything as a file
holds it, and draws held-out captions and the hard set. Writes OUTPUT/<format>.json and OUTPUT/refine.md. Under torchrun
the processes share the formats; they may share a GPU.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ...svdq_core.checkpoint import Checkpoint, read_checkpoint
from ...svdq_core.checkpoint.formats import FORMATS, save_model
from ...svdq_core.layer import QuantizedLayer
from ...svdq_core.models.flux import FLUX
from ...svdq_core.quantize.layout_plan import plan_weights
from ...svdq_core.quantize.refine import Refined, RefineSpec, refine
from ...svdq_core.quantize.refine_block import refine_block
from ...svdq_core.quantize.refine_layer import make_trainable, on_device
from ...svdq_core.quantize.spec import QuantSpec
from ...svdq_core.quantize.whole_model import quantize_model
from ...svdq_core.quantized_model import QuantizedModel
from ..evaluate.evaluated_scenes import calibration_scenes, evaluated_scenes
from ..evaluate.linears import DenseLinear, SimulatedLinear, add_lora
from ..evaluate.measures import lora_effect, relative_errors
from ..evaluate.network import Flux, flux_weights, latents_by_step, load_flux, lora_factors, with_layers
from ..evaluate.recorded_inputs import TOKENS, record
from .demo_blocks import DemoRuns, VelocityLoss
from .refine_report import write_report
from .refinements import REFINEMENTS, TARGETS, RefinedFormat, Refinement
from .states import StateBatch, draw_noise, draw_states

BATCH = 96  # states that go through the network at once
STEPS = (20, 4)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/refine"), help="folder for figures and the table")
    parser.add_argument("--captions", type=int, default=256, help="held-out captions; a quarter as many hard ones")
    parser.add_argument("--training", type=int, default=384, help="training captions to refine on")
    parser.add_argument("--calibration", type=int, default=64, help="training captions to record for best")
    parser.add_argument("--formats", nargs="+", default=[t.name for t in TARGETS], choices=[t.name for t in TARGETS])
    parser.add_argument("--recipes", nargs="+", default=["blocks", "model"], choices=[r.name for r in REFINEMENTS])
    parser.add_argument("--method", default="best", choices=("fast", "best"), help="of the quantizer, before refining")
    parser.add_argument("--scale", type=float, default=1.0, help="times the steps of every recipe")
    parser.add_argument("--batch", type=int, default=BATCH, help="states in each step of training")
    parser.add_argument("--no-lora", action="store_true", help="leave out the LoRA")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--drafts", type=Path, help="folder of quantized files to begin from; what it lacks is made")
    parser.add_argument("--only-drafts", action="store_true", help="make them and stop")
    parser.add_argument("--report", action="store_true", help="only write the table of what OUTPUT holds")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure this process's formats; the first process writes the table."""
    options = parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not options.report:
        if world > 1:
            dist.init_process_group("gloo")
        bench = None
        for name in options.formats[rank::world]:
            if options.only_drafts:
                draft(next(target for target in TARGETS if target.name == name), options)
                continue
            bench = bench or _RefineBench(options)
            target = next(target for target in TARGETS if target.name == name)
            for found in bench.measure(target):  # whatever ends the run, what is done is kept
                (options.output / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
        if world > 1:
            dist.barrier()
            dist.destroy_process_group()
    if rank == 0 and not options.only_drafts:
        print(write_report(options.output).read_text(encoding="utf-8"))
    return 0


def draft(target: RefinedFormat, options: argparse.Namespace) -> QuantizedModel:
    """What the quantizer makes of the model; from the folder of drafts if it is there."""
    path = options.drafts / f"{target.name}.safetensors" if options.drafts else None
    if path is not None and path.exists():
        return read_checkpoint(Checkpoint(path))
    source = record(options.calibration, torch.device(options.device))
    quantized, _, _ = quantize_model(
        FLUX,
        plan_weights(FLUX, source.weights),
        source.weights,
        list(source.weights),
        spec=QuantSpec(target.precision, target.activations, 32, options.method, score_tokens=TOKENS),
        device=torch.device("cpu"),
        calibration=source.inputs,
    )
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        for newer, older in FLUX.older_tensors.items():  # the demo's file has those
            quantized.plain = {
                name.removesuffix(older) + newer if name.endswith(older) else name: tensor
                for name, tensor in quantized.plain.items()
            }
        save_model(path, quantized, FORMATS["svdquant"](FLUX))
    return quantized


class _RefineBench:
    """The model, the scenes, and what the full-precision model draws of them."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.started = options, time.monotonic()
        self.device = torch.device(options.device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.model = load_flux(self.device)
        self.scenes = evaluated_scenes(options.captions, options.captions // 4, self.device)
        self.training = calibration_scenes(options.training, self.device)
        self.lora = {n: (d.to(self.device), u.to(self.device)) for n, (d, u) in lora_factors().items()}
        self.reference = {steps: self._draw(self.model, steps) for steps in STEPS}
        self.adapted = None if options.no_lora else self._draw(self._with_lora(self.model), STEPS[0])
        self._batches: dict[tuple, list[StateBatch]] = {}
        self._say("references drawn")

    def measure(self, target: RefinedFormat) -> Iterator[dict[str, Any]]:
        """Figures of `best` and of the recipes so far, by name."""
        begun = time.monotonic()
        best = {name: on_device(layer, self.device) for name, layer in draft(target, self.options).layers.items()}
        self._say(f"{target.name}: {self.options.method} in {time.monotonic() - begun:.1f} s")
        plan = plan_weights(FLUX, flux_weights())
        blocks = {block: [layer.name for layer in layers] for block, layers in plan.blocks.items()}
        made = {"": best}
        found: dict[str, Any] = {"captions": int((~self.scenes.is_hard).sum()), "recipes": {}}
        found["recipes"][self.options.method] = self._figures(best, target, 0.0)
        yield found
        for recipe in (recipe for recipe in REFINEMENTS if recipe.name in self.options.recipes):
            begun = time.monotonic()
            made[recipe.name] = self._refine(recipe, made[recipe.after], blocks, self._simulated(best, target), target)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.monotonic() - begun
            found["recipes"][recipe.name] = self._figures(made[recipe.name], target, seconds)
            yield found

    def _refine(
        self,
        recipe: Refinement,
        layers: dict[str, QuantizedLayer],
        blocks: Mapping[str, list[str]],
        own: Flux,
        target: RefinedFormat,
    ) -> dict[str, QuantizedLayer]:
        batches = self._states(recipe, own, target)
        steps = max(2, round(recipe.steps * self.options.scale))
        spec = RefineSpec(steps, samples=1, rate=recipe.rate, bits=recipe.bits)
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            if recipe.whole:
                modules = make_trainable(layers, torch.float32, recipe.bits)
                loss = VelocityLoss(self.model, batches, modules)
                refined = refine(modules, loss, len(batches), spec, "model")
                self._note(refined, "model")
                return refined.layers
            runs, changed = DemoRuns(self.model, batches, recipe.aim), {}
            while block := runs.advance():
                own_layers = {name: layers[name] for name in blocks[block]}
                refined, modules = refine_block(runs.here(), own_layers, spec, block)
                runs.leave(modules)
                self._note(refined, block)
                changed |= refined.layers
            return changed
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False

    def _note(self, refined: Refined, name: str) -> None:
        gain = (refined.after / refined.before) ** 0.5 if refined.before else 1.0
        self._say(f"  {name}: error on held-out states x {gain:.4f}{'' if refined.kept else ', not kept'}")

    def _states(self, recipe: Refinement, own: Flux, target: RefinedFormat) -> list[StateBatch]:
        key = recipe.inputs, recipe.weigh, target if recipe.inputs == "own" else None
        if key not in self._batches:
            batch = self.options.batch
            if recipe.inputs == "noise":
                self._batches[key] = draw_noise(self.options.training * 20 // batch, self.training, batch, 0)
            else:
                models = [self.model, own] if recipe.inputs == "own" else [self.model]
                self._batches[key] = draw_states(models, self.training, batch, recipe.weigh, 0)
        return self._batches[key]

    def _simulated(self, layers: Mapping[str, QuantizedLayer], target: RefinedFormat) -> Flux:
        return with_layers(self.model, self._modules(layers, target))

    def _modules(self, layers: Mapping[str, QuantizedLayer], target: RefinedFormat) -> dict[str, torch.nn.Module]:
        return {
            name: DenseLinear.of_layer(layer)
            if layer.parts[0].scheme == "awq"
            else SimulatedLinear.of_layer(layer, target.precision, target.activations)
            for name, layer in layers.items()
        }

    def _with_lora(self, model: Flux) -> Flux:
        return with_layers(model, {n: add_lora(model.get_submodule(n), *f) for n, f in self.lora.items()})

    def _draw(self, model: Flux, steps: int) -> torch.Tensor:
        *_, last = latents_by_step(model, self.scenes, self.scenes.noise, steps)
        return last

    def _figures(self, layers: Mapping[str, QuantizedLayer], target: RefinedFormat, seconds: float) -> dict[str, Any]:
        model = self._simulated(layers, target)
        drawn = {steps: self._draw(model, steps) for steps in STEPS}
        figures = {f"error at {s} steps": relative_errors(drawn[s], self.reference[s]).tolist() for s in STEPS}
        size = (drawn[STEPS[0]] * self.reference[STEPS[0]]).flatten(1).sum(1)
        figures["projection"] = (size / self.reference[STEPS[0]].square().flatten(1).sum(1)).tolist()
        if self.adapted is not None:
            with_lora = self._draw(self._with_lora(model), STEPS[0])
            figures["error with LoRA"] = relative_errors(with_lora, self.adapted).tolist()
            effect = lora_effect(drawn[STEPS[0]], with_lora, self.reference[STEPS[0]], self.adapted)
            figures |= {f"LoRA {name}": values.tolist() for name, values in effect.items()}
        easy = ~self.scenes.is_hard.cpu()
        means = {name: float(torch.tensor(values)[easy].mean()) for name, values in figures.items()}
        self._say("  " + ", ".join(f"{name} {mean:.4f}" for name, mean in means.items()) + f" ({seconds:.0f} s)")
        return {"figures": figures, "hard": self.scenes.is_hard.tolist(), "seconds": seconds}

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:6.1f} s] {text}", flush=True)
