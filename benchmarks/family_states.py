"""Memory states of other families on a CUDA GPU, in the real host: an image model, video models, a UNet.

    COMFYUI_PATH=... python benchmarks/family_states.py --mode dynamic --folder /tmp/s   as ComfyUI starts on NVIDIA
    COMFYUI_PATH=... python benchmarks/family_states.py --mode legacy --folder /tmp/s    --disable-dynamic-vram

Models of the published widths with random weights, every Linear of the blocks quantized; MiniMax H3 and LTX-2.3, which
prefetch whole blocks, with few blocks. For each: against the host's dense model of the same weights, again, with a LoRA
and without, with little memory left, after everything was unloaded, saved by the host and loaded again, and in turn
with the model before. Prints a table; exits with 1 if a state differs.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from random_flux import Draw, start_host

# family -> sizes that differ from the published ones, what a forward is asked for, largest error against dense weights
MODELS = {
    "zimage": ({}, {"side": (128, 128), "tokens": 128}, 3e-2),
    "sdxl": ({}, {"side": (128, 128), "tokens": 77}, 3e-2),
    "wan22_5b": ({}, {"side": (64, 64), "frames": 5, "tokens": 128}, 3e-2),
    "minimax_h3": ({"num_layers": 8}, {"side": (64, 64), "frames": 4, "tokens": 128}, 3e-2),
    "ltx23": ({"num_layers": 6}, {"side": (64, 64), "frames": 4}, 3e-2),
}
LEFT = 0.6  # of the model's size stays free on the card, beside what the forward takes


class Table:
    """Rows of states, and how many were wrong."""

    def __init__(self, mode: str):
        self.mode, self.failures = mode, 0
        print(f"| model | state ({mode}) | ms | model MiB | loaded MiB | taken on the card MiB | result |")
        print("|---|---|---:|---:|---:|---:|---|")

    def row(self, name: str, state: str, run, good: bool, result: str) -> None:
        self.failures += not good
        numbers = f"{run.ms:.0f} | {run.size:.0f} | {run.loaded:.0f} | {run.taken:.0f}"
        print(f"| {name} | {state} | {numbers} | {result}{'' if good else ' **WRONG**'} |", flush=True)


class Forward:
    """One forward of the host's apply_model, its time, and what is on the card afterwards."""

    def __init__(self, family, config: dict, sizes: dict, patcher):
        import comfy.model_management
        import comfy.model_prefetch
        from families.models import on_device
        from families.network import Sizes

        wanted = Sizes(**sizes)
        wanted.generator.manual_seed(wanted.seed)
        latent, given = family.inputs(config, wanted)
        device = patcher.load_device
        comfy.model_management.load_models_gpu([patcher], memory_required=2 << 30)
        _synchronize(device)
        start = time.perf_counter()
        dtype = patcher.model.get_dtype_inference()
        patcher.pre_run()
        given = on_device(device, given)
        text = given["c_crossattn"] = given["c_crossattn"].to(dtype)
        assert text.device == device
        self.out = patcher.model.apply_model(latent.to(device), wanted.number(family.sigma).to(device), **given).float()
        _synchronize(device)
        self.ms = 1e3 * (time.perf_counter() - start)
        comfy.model_prefetch.cleanup_prefetch_queues()
        self.size, self.loaded = patcher.model_size() / 2**20, patcher.loaded_size() / 2**20
        self.taken = (_taken(device)) / 2**20

    def same(self, other: "Forward") -> tuple[bool, str]:
        import torch

        if torch.equal(self.out, other.out):
            return True, "same bits"
        return False, f"differs by {self.error(other):.1e}"

    def error(self, other: "Forward") -> float:
        return float((self.out - other.out).norm() / other.out.norm())


def _synchronize(device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _taken(device) -> int:
    import torch

    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _on_cpu(layer):
    from dataclasses import replace

    parts = tuple(replace(p, tensors={n: t.cpu() for n, t in p.tensors.items()}) for p in layer.parts)
    return replace(layer, parts=parts, bias=None if layer.bias is None else layer.bias.cpu())


def random_model(name: str, family, config: dict, device: str):
    """Every Linear of the blocks as a random int4 or AWQ layer, made on the GPU."""
    from families.network import random_tensors

    from svdquant_pack.svdq_core.models import Architecture
    from svdquant_pack.svdq_core.quantized_model import QuantizedModel

    shapes, draw = family.shapes(config), Draw(device)
    model = QuantizedModel(Architecture(name, name, ()), metadata=dict(family.metadata or {}))
    for layer, (outputs, inputs) in family.layers(config).items():
        made = _on_cpu(draw.layer(layer, outputs, inputs))
        biased = f"{layer}.bias" in shapes
        model.layers[layer] = made if biased else type(made)(inputs, outputs, made.parts)
        for end in ("weight", "bias"):
            shapes.pop(f"{layer}.{end}", None)
    model.plain = {key: tensor.bfloat16() for key, tensor in random_tensors(shapes).items()}
    return model


def dense_model(model, device: str) -> dict:
    """bfloat16 tensors of what a quantized model stands for."""
    import torch

    from svdquant_pack.svdq_core.apply_layer import dense_weight
    from svdquant_pack.svdq_core.layer import QuantizedLayer, with_tensors

    tensors = dict(model.plain)
    for name, layer in model.layers.items():
        parts = tuple(with_tensors(p, **{n: t.to(device) for n, t in p.tensors.items()}) for p in layer.parts)
        weight = dense_weight(QuantizedLayer(layer.in_features, layer.out_features, parts))
        tensors[f"{name}.weight"] = weight.to(torch.bfloat16).cpu()
        if layer.bias is not None:
            tensors[f"{name}.bias"] = layer.bias
    return tensors


def random_lora(layers: dict, device: str) -> dict:
    draw, file = Draw(device, seed=7), {}
    for name, (outputs, inputs) in layers.items():
        file[f"diffusion_model.{name}.lora_A.weight"] = draw.normal(16, inputs, scale=inputs**-0.5).cpu()
        file[f"diffusion_model.{name}.lora_B.weight"] = draw.normal(outputs, 16, scale=0.05).cpu()
    return file


class Prefetches:
    """Counts the modules of ours that the host pages in ahead, block by block."""

    def __enter__(self):
        import comfy.ops

        from svdquant_pack.nodes.host.model.quantized_linear import SVDQuantLinear

        self.count, self._original = 0, comfy.ops.cast_modules_with_vbar

        def counting(modules, *args, **kwargs):
            self.count += sum(isinstance(module, SVDQuantLinear) for module in modules)
            return self._original(modules, *args, **kwargs)

        comfy.ops.cast_modules_with_vbar = counting
        return self

    def __exit__(self, *_):
        import comfy.ops

        comfy.ops.cast_modules_with_vbar = self._original


class States:
    """One model through all states."""

    def __init__(self, name: str, args: argparse.Namespace, table: Table):
        from families.registry import FAMILIES

        self.name, self.args, self.table, self.family = name, args, table, FAMILIES[name]
        different, self.sizes, self.limit = MODELS[name]
        self.config = self.family.published | different
        if args.tiny:
            self.config, self.sizes = self.family.tiny_config, {}
        self.layers = self.family.layers(self.config)

    def run(self, patcher) -> Forward:
        return Forward(self.family, self.config, self.sizes, patcher)

    def check(self, state: str, patcher, expected: Forward) -> None:
        run = self.run(patcher)
        self.table.row(self.name, state, run, *run.same(expected))

    def load(self):
        """Our MODEL, and the host's dense one of the same weights."""
        import comfy.sd
        from families.models import detected_as

        from svdquant_pack.nodes.host.model.build import build_model

        model = random_model(self.name, self.family, self.config, self.args.device)
        dense = dense_model(model, self.args.device)
        with detected_as(self.family, self.config):
            return build_model(model, self.args.compute), comfy.sd.load_diffusion_model_state_dict(dense)

    def all(self, before: "tuple[States, object, Forward] | None"):
        import comfy.model_management
        import comfy.sd
        import torch

        ours, dense = self.load()
        with Prefetches() as prefetches:
            plain = self.run(ours)
        found = "" if not prefetches.count else f"; {prefetches.count} of our layers prefetched"
        self.table.row(self.name, "first", plain, bool(plain.out.isfinite().all()), "finite" + found)
        reference = self.run(dense)
        error = plain.error(reference)
        self.table.row(self.name, "dense, of the host", reference, error < self.limit, f"ours differs by {error:.1e}")
        del dense
        comfy.model_management.unload_all_models()
        plain = self.run(ours)  # the first one may have chosen other algorithms
        self.check("unloaded and loaded again", ours, plain)
        file = random_lora(self.layers, self.args.device)
        patched = comfy.sd.load_lora_for_models(ours, None, file, 0.8, 0)[0]
        lora = self.run(patched)
        self.table.row(self.name, "LoRA", lora, lora.error(plain) > 1e-3, f"moves it by {lora.error(plain):.1e}")
        self.check("LoRA off", ours, plain)
        self.check("LoRA on again", patched, lora)
        if self.args.device == "cuda":
            comfy.model_management.unload_all_models()
            comfy.model_management.soft_empty_cache()
            free = torch.cuda.mem_get_info()[0]
            ballast = torch.empty(int(free - ours.model_size() * LEFT - (2 << 30)), dtype=torch.uint8, device="cuda")
            with Prefetches() as prefetches:
                self.check("little memory", ours, plain)
            self.check(f"little memory, LoRA ({prefetches.count} prefetched without)", patched, lora)
            self.check("little memory, LoRA off", ours, plain)
            del ballast
            comfy.model_management.soft_empty_cache()
        self._saved(ours, plain)
        if before is not None:
            other, model, expected = before
            other.check(f"in turn with {self.name}", model, expected)
            self.check(f"in turn with {other.name}", ours, plain)
        return self, ours, plain

    def _saved(self, ours, plain: Forward) -> None:
        import comfy.utils
        from families.models import detected_as

        from svdquant_pack.nodes.host.model.build import load_model

        path = self.args.folder / f"{self.name}.safetensors"
        comfy.utils.save_torch_file(ours.state_dict_for_saving(), str(path), metadata=self.family.metadata)
        with detected_as(self.family, self.config):
            again = load_model(str(path), self.args.compute)
        self.check(f"saved by the host ({path.stat().st_size >> 20} MiB), loaded", again, plain)
        path.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description="Memory states of other families.")
    parser.add_argument("--mode", choices=("dynamic", "legacy"), default="dynamic")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--compute", default="w4a16")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to see whether this script runs")
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()
    args.device = "cpu" if args.cpu else "cuda"
    args.folder.mkdir(parents=True, exist_ok=True)
    start_host(args.mode, ("--cpu",) if args.cpu else ())

    import torch

    print(torch.__version__, "CPU" if args.cpu else torch.cuda.get_device_name(), args.compute)
    table, before = Table(args.mode), None
    with torch.inference_mode():  # as ComfyUI runs its nodes
        for name in args.models.split(","):
            before = States(name, args, table).all(before)
    print(f"{table.failures} failures")
    return 1 if table.failures else 0


if __name__ == "__main__":
    sys.exit(main())
