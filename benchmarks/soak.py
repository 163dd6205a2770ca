"""Reliability: hundreds of prompts in one real server, and what stays of them in memory.

    COMFYUI_PATH=... python benchmarks/soak.py --prompts 300 --loras 300

Random order of model, LoRA set, strength, size and batch; hundreds of LoRA files of many ranks, and pictures of many
sizes, so that a table that grows with either shows; now and then an interrupt in the middle, a bad file, and a step
that runs out of memory. The first picture is asked for again at the end. Prints memory of host and GPU along the way,
and its slope after the first third; exits with 1 if the server fell over, a good prompt failed, memory grew by more
than 1 % in that time, or the last picture differs.

Two things grow by intention, and are out of the way: ComfyUI keeps what all earlier prompts computed until memory runs
short (--cache-classic keeps the last prompt's), and this pack keeps recently read LoRA files, up to 1 GiB. So each file
is used once, by both loaders, before memory is looked at.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools")]

from comfyui_server import ComfyUIError, ComfyUIServer  # noqa: E402
from comfyui_source import find_host  # noqa: E402
from host_models import put_tiny  # noqa: E402
from lora_files import adapter_file, diffusers_lora, host_lora  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor, cat  # noqa: E402

GROWTH = 0.01  # of memory, from the first third of the run to its end
FEWEST_LORAS = 3
SIDES = range(64, 209, 16)  # pixels of a picture: a hundred different numbers of tokens

# Nodes for this run alone: conditioning without a text encoder, a fingerprint of a latent, a step that wants too much.
NODES = """
import hashlib
import torch


class SoakPrompt:
    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "make", "soak"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {"default": 0})}}

    def make(self, seed):
        g = torch.Generator().manual_seed(seed)
        pooled = torch.randn(1, 64, generator=g)
        return ([[torch.randn(1, 16, 128, generator=g), {"pooled_output": pooled, "guidance": 3.5}]],)


class SoakFingerprint:
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "show", "soak", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"latent": ("LATENT",)}}

    def show(self, latent):
        data = latent["samples"].float().cpu().contiguous().numpy().tobytes()
        return {"ui": {"text": [hashlib.sha256(data).hexdigest()]}}


class SoakGreedyModel:
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "patch", "soak"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def patch(self, model):
        def run(network, given):
            network(given["input"], given["timestep"], **given["c"])
            try:
                return torch.empty(1 << 60, dtype=torch.uint8, device=given["input"].device)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # what a CPU's allocator raises; the host knows a GPU's
                raise torch.OutOfMemoryError(str(error)) from error

        model = model.clone()
        model.set_model_unet_function_wrapper(run)
        return (model,)


NODE_CLASS_MAPPINGS = {"SoakPrompt": SoakPrompt, "SoakFingerprint": SoakFingerprint, "SoakGreedyModel": SoakGreedyModel}
"""

HOST_ARGUMENTS = ("--cache-classic",)
STACK = 6  # LoRAs of a prompt that warms up
MODELS = ("svdq-int4-tiny.safetensors", "svdq-nvfp4-tiny.safetensors")


def lora_names(count: int) -> list[str]:
    return [f"lora{number:04d}.safetensors" for number in range(count)]


def make_lora(number: int) -> dict[str, Tensor]:
    """One of many LoRAs: ranks from 4 to 32 in both spellings, and among ten of them one LoKr."""
    if number % 10 == 2:
        return adapter_file("LoKr", seed=number)
    lora, times = (diffusers_lora if number % 2 else host_lora)(number), 1 + number % 8
    along = {"lora_A.weight": 0, "lora_B.weight": 1}
    return {
        name: cat([tensor] * times, along[name[-13:]]) if name[-13:] in along else tensor
        for name, tensor in lora.items()
    }


def put_files(base: Path, loras: int = FEWEST_LORAS) -> None:
    for kind in ("diffusion_models", "loras"):
        (base / "models" / kind).mkdir(parents=True, exist_ok=True)
    for precision in ("int4", "nvfp4"):
        put_tiny(base / "models" / "diffusion_models", precision)
    (base / "models" / "diffusion_models" / "bad.safetensors").write_bytes(b"not a model")
    for number, name in enumerate(lora_names(loras)):
        save_file(make_lora(number), base / "models" / "loras" / name)
    node = base / "custom_nodes" / "soak_nodes"
    node.mkdir(parents=True, exist_ok=True)
    (node / "__init__.py").write_text(NODES, encoding="utf-8")


def graph(model: str, compute: str, loras: list[tuple[str, float]], size: tuple[int, int], batch: int, **more) -> dict:
    nodes = {"model": {"class_type": "SVDQuantModelLoader", "inputs": {"model_name": model, "compute": compute}}}
    last = "model"
    for i, (name, strength) in enumerate(loras):
        given = {"model": [last, 0], "lora_name": name}
        stock = i % 2
        kind = "LoraLoaderModelOnly" if stock else "SVDQuantLoraLoader"
        given["strength_model" if stock else "strength"] = strength
        last = f"lora{i}"
        nodes[last] = {"class_type": kind, "inputs": given}
    if more.get("greedy"):
        nodes["greedy"] = {"class_type": "SoakGreedyModel", "inputs": {"model": [last, 0]}}
        last = "greedy"
    nodes["prompt"] = {"class_type": "SoakPrompt", "inputs": {"seed": more.get("seed", 0)}}
    latent = {"width": size[0], "height": size[1], "batch_size": batch}
    nodes["latent"] = {"class_type": "EmptySD3LatentImage", "inputs": latent}
    settings = {"seed": more.get("seed", 0), "steps": more.get("steps", 2), "cfg": 1.0, "denoise": 1.0}
    settings |= {"sampler_name": "euler", "scheduler": "simple", "model": [last, 0], "latent_image": ["latent", 0]}
    settings |= {"positive": ["prompt", 0], "negative": ["prompt", 0]}
    nodes["sample"] = {"class_type": "KSampler", "inputs": settings}
    nodes["show"] = {"class_type": "SoakFingerprint", "inputs": {"latent": ["sample", 0]}}
    return nodes


def draw(rng: random.Random, names: list[str]) -> dict:
    loras = [(name, round(rng.uniform(-1, 1), 2)) for name in rng.sample(names, rng.randrange(FEWEST_LORAS + 1))]
    size = rng.choice(SIDES), rng.choice(SIDES)
    return graph(
        rng.choice(MODELS), rng.choice(("w4a4", "w4a8")), loras, size, rng.choice((1, 1, 2)), seed=rng.randrange(99)
    )


def warm_up(server: ComfyUIServer, names: list[str]) -> None:
    """Use each LoRA twice: graph() gives every other place in a stack to the stock loader."""
    for start in range(0, len(names), STACK):
        stack = [(name, 0.3) for name in names[start : start + STACK]]
        for turned in (stack, stack[1:] + stack[:1]):
            for model in MODELS:
                server.prompt(graph(model, "w4a8", turned, (64, 64), 1))


def memory(server: ComfyUIServer) -> tuple[float, float]:
    """(resident memory of the server in MiB, memory of torch on the GPU in MiB)."""
    process = server._process
    status = Path("/proc") / str(process.pid if process else 0) / "status"
    resident = 0.0
    if status.exists():  # Linux; elsewhere only the GPU is watched
        resident = next(
            int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmRSS")
        )
    devices = json.loads(server.request("/system_stats"))["devices"]
    used = sum(d.get("torch_vram_total", 0) - d.get("torch_vram_free", 0) for d in devices if d["type"] != "cpu")
    return resident, used / 2**20


def soak(server: ComfyUIServer, count: int, seed: int, loras: int) -> list[str]:
    """Run the prompts; return what went wrong."""
    rng, problems, marks, names = random.Random(seed), [], [], lora_names(loras)
    first_graph = graph(MODELS[0], "w4a8", [(names[0], 0.7), (names[1], -0.3)], (128, 96), 1, seed=1)
    first = server.prompt(first_graph)["outputs"]["show"]["text"]
    interrupted = refused = starved = 0
    started = time.monotonic()
    warm_up(server, names)
    print(f"each of {loras} LoRAs used, {time.monotonic() - started:.1f} s: server {memory(server)[0]:.1f} MiB")
    for number in range(1, count + 1):
        try:
            if number % 17 == 0:
                prompt = server.submit(
                    graph(MODELS[0], "w4a8", [(names[0], 0.5)], (256, 256), 2, seed=number, steps=40)
                )
                time.sleep(0.5)
                server.interrupt()
                interrupted += wait_for_end(server, prompt)
            elif number % 23 == 0:
                refused += fails(server, graph("bad.safetensors", "auto", [], (64, 64), 1), "bad.safetensors", problems)
            elif number % 29 == 0:
                starving = graph(MODELS[0], "w4a8", [(names[0], 0.5)], (128, 96), 1, seed=number, greedy=True)
                starved += fails(server, starving, "ran out of memory", problems)
            else:
                server.prompt(draw(rng, names))
        except ComfyUIError as error:
            problems.append(f"prompt {number}: {error}")
            break
        if number % max(count // 20, 1) == 0:
            marks.append((number, *memory(server)))
            print(
                f"{number:4d} prompts, {time.monotonic() - started:6.1f} s: server {marks[-1][1]:8.1f} MiB, "
                f"torch on the GPU {marks[-1][2]:8.1f} MiB",
                flush=True,
            )
    if not problems and server.prompt(first_graph)["outputs"]["show"]["text"] != first:
        problems.append("the first picture, asked for again at the end, differs")
    print(f"{interrupted} interrupted, {refused} bad files refused with a sentence, {starved} ran out of memory")
    settled = marks[len(marks) // 3 :]
    for column, what in ((1, "server memory"), (2, "GPU memory")):
        values = [mark[column] for mark in settled]
        if any(values):
            print(f"{what}: slope {100 * slope([mark[0] for mark in settled], values):+.2f} MiB in 100 prompts")
        if len(values) > 3 and min(values[:3]) > 0 and min(values[-3:]) > max(values[:3]) * (1 + GROWTH):
            problems.append(f"{what} grew from {max(values[:3]):.1f} to {min(values[-3:]):.1f} MiB")
    return problems


def slope(places: list[float], values: list[float]) -> float:
    """Of the straight line that lies closest to the values; 0 for fewer than two."""
    mean_place, mean_value = sum(places) / len(places), sum(values) / len(values)
    spread = sum((place - mean_place) ** 2 for place in places)
    pairs = zip(places, values, strict=True)
    return sum((p - mean_place) * (v - mean_value) for p, v in pairs) / spread if spread else 0.0


def fails(server: ComfyUIServer, prompt: dict, words: str, problems: list[str]) -> int:
    """1 if the prompt ends with an error that has these words; otherwise a problem is noted."""
    try:
        server.prompt(prompt)
    except ComfyUIError as error:
        if words in str(error):
            return 1
        problems.append(f"{words!r} expected in: {error}")
        return 0
    problems.append(f"a prompt that should fail with {words!r} succeeded")
    return 0


def wait_for_end(server: ComfyUIServer, prompt: str) -> int:
    """1 once the prompt has ended, by interruption or because it was quicker."""
    for _ in range(1200):
        if json.loads(server.request(f"/history/{prompt}")).get(prompt):
            return 1
        time.sleep(0.05)
    raise ComfyUIError("an interrupted prompt did not end within a minute")


def main() -> int:
    parser = argparse.ArgumentParser(description="Hundreds of prompts in one real server.")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--loras", type=int, default=300, help=f"different files, at least {FEWEST_LORAS} (300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    args = parser.parse_args()
    host = find_host()
    if host is None:
        raise SystemExit("needs ComfyUI: set COMFYUI_PATH to its folder")
    with tempfile.TemporaryDirectory(prefix="svdquant-soak-") as folder:
        put_files(Path(folder), max(args.loras, FEWEST_LORAS))
        with ComfyUIServer(host, Path(folder), device=args.device, extra_args=HOST_ARGUMENTS) as server:
            problems = soak(server, args.prompts, args.seed, max(args.loras, FEWEST_LORAS))
    for problem in problems:
        print(f"PROBLEM: {problem}")
    print("no problems" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
