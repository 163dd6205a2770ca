"""How long a full-size checkpoint takes to read, beside safetensors reading the same bytes and doing nothing with them.

    python benchmarks/checkpoint_speed.py FOLDER [--double 19] [--single 38] [--rank 32] [--rounds 7] [--cold] [--keep]
    python benchmarks/checkpoint_speed.py FOLDER --family qwen_image,zimage|all [--gib 12] [--precision int4] [--cold]
    COMFYUI_PATH=... python benchmarks/checkpoint_speed.py FOLDER --family zimage,krea2 --node [--cold]

Writes a synthetic FLUX.1 file in nunchaku's INT4 layout into FOLDER (6.3 GiB at full size; random codes, sound
scales), or one of each family named, of about as many GiB as asked for (Chroma in nvfp4: random INT4 biases are
refused), then reads it in several ways, one after the other, round after round:

    through     one thread reads the file from beginning to end into 16 MiB that are used again: what disk and system
                take, and no tensor is there afterwards
    file        all bytes of the file into one piece of memory: what a reader of any format has to do
    bytes       safetensors maps the file, every tensor is copied once into memory of its own
    load        safetensors.torch.load of the file's bytes, for comparison
    ready       Checkpoint, plan, unpack: every layer in this pack's layout, in memory
    blobs       the same, packed into the one weight of each layer that ComfyUI gets
    node        with --node: all that Load Model (SVDQuant) does, ComfyUI's own part included: the MODEL, on the CPU

Ratios are medians over the rounds of the ratio within a round, so that other work on the machine counts the less; "CPU"
is the time that all threads of this process were running, page faults included. The file is in the page cache, or with
--cold dropped from it before every read. "memory" is the largest growth of anonymous memory (the mapped file is none)
relative to the file.
"""

import argparse
import ctypes
import gc
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
ARGUMENTS = sys.argv[1:]
if "--node" in ARGUMENTS:  # the host chooses torch's allocator, which cannot be done once torch is there
    from random_flux import start_host

    start_host("legacy", () if shutil.which("nvidia-smi") else ("--cpu",))

import torch  # noqa: E402
from family_file import FamilyFile, raised  # noqa: E402
from safetensors import safe_open  # noqa: E402  (the pack has to be importable first)
from safetensors.torch import load  # noqa: E402

from svdquant_pack.svdq_core.blob import to_blob  # noqa: E402
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint  # noqa: E402
from svdquant_pack.svdq_core.checkpoint.output import Output  # noqa: E402
from svdquant_pack.svdq_core.checkpoint.stream import write_stream  # noqa: E402
from svdquant_pack.svdq_core.models import ARCHITECTURES  # noqa: E402

WIDTH, TEXT, POOLED = 3072, 4096, 768


def random_output(name: str, dtype: torch.dtype, *shape: int) -> Output:
    """A tensor that is made when it is written: any bytes for codes, values around one half for the rest."""

    def blocks() -> Iterator[torch.Tensor]:
        if dtype.is_floating_point:
            yield (torch.rand(shape) * 0.5 + 0.25).to(dtype)
        else:
            count = Output(name, shape, dtype, tuple).nbytes
            words = torch.randint(-(2**63), 2**63 - 1, (-(-count // 8),))  # 8 times as fast as bytes
            yield words.view(torch.uint8)[:count].view(dtype).view(shape)

    return Output(name, shape, dtype, blocks)


def svdquant(name: str, rows: int, columns: int, rank: int) -> Iterator[Output]:
    half = torch.bfloat16
    yield random_output(f"{name}.qweight", torch.int8, rows, columns // 2)
    yield random_output(f"{name}.wscales", half, columns // 64, rows)
    for vector in ("smooth", "smooth_orig"):
        yield random_output(f"{name}.{vector}", half, columns)
    yield random_output(f"{name}.bias", half, rows)
    yield random_output(f"{name}.lora_down", half, columns, rank)
    yield random_output(f"{name}.lora_up", half, rows, rank)


def modulation(name: str, chunks: int) -> Iterator[Output]:
    rows, half = chunks * WIDTH, torch.bfloat16
    yield random_output(f"{name}.qweight", torch.int32, rows // 4, WIDTH // 2)
    for scale in ("wscales", "wzeros"):
        yield random_output(f"{name}.{scale}", half, WIDTH // 64, rows)
    yield raised(random_output(f"{name}.bias", half, rows))


def flux_outputs(double: int, single: int, rank: int) -> list[Output]:
    """Every tensor of a FLUX.1 dev in nunchaku's older names."""
    found: list[Output] = []
    layers = {"qkv_proj": (3, 1), "out_proj": (1, 1), "mlp_fc1": (4, 1), "mlp_fc2": (1, 4)}
    for index in range(double):
        block = f"transformer_blocks.{index}"
        for suffix, mlp in (("", "mlp"), ("_context", "mlp_context")):
            names = {"qkv_proj": f"qkv_proj{suffix}", "out_proj": f"out_proj{suffix}"}
            names |= {"mlp_fc1": f"{mlp}_fc1", "mlp_fc2": f"{mlp}_fc2"}
            for layer, (n, k) in layers.items():
                found += svdquant(f"{block}.{names[layer]}", n * WIDTH, k * WIDTH, rank)
            found += modulation(f"{block}.norm1{suffix}.linear", 6)
        norms = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
        found += [random_output(f"{block}.{norm}.weight", torch.bfloat16, 128) for norm in norms]
    for index in range(single):
        block = f"single_transformer_blocks.{index}"
        for layer, (n, k) in layers.items():
            found += svdquant(f"{block}.{layer}", n * WIDTH, k * WIDTH, rank)
        found += modulation(f"{block}.norm.linear", 3)
        found += [random_output(f"{block}.{norm}.weight", torch.bfloat16, 128) for norm in ("norm_q", "norm_k")]
    plain = {"x_embedder": (WIDTH, 64), "context_embedder": (WIDTH, TEXT), "proj_out": (64, WIDTH)}
    plain["norm_out.linear"] = (2 * WIDTH, WIDTH)
    for name, inputs in (("timestep", 256), ("guidance", 256), ("text", POOLED)):
        plain[f"time_text_embed.{name}_embedder.linear_1"] = (WIDTH, inputs)
        plain[f"time_text_embed.{name}_embedder.linear_2"] = (WIDTH, WIDTH)
    for name, shape in plain.items():
        found.append(random_output(f"{name}.weight", torch.bfloat16, *shape))
        found.append(random_output(f"{name}.bias", torch.bfloat16, shape[0]))
    return found


def read_through(path: Path) -> None:
    memory = bytearray(16 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(memory):
            pass


def read_file(path: Path) -> bytes:
    return path.read_bytes()


def read_bytes(path: Path) -> list[torch.Tensor]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # 16 threads for one copy take 8 times as much of the processor, and longer
    try:
        with safe_open(path, framework="pt") as file:
            return [file.get_tensor(name).clone() for name in file.keys()]  # noqa: SIM118
    finally:
        torch.set_num_threads(threads)


def read_load(path: Path) -> dict[str, torch.Tensor]:
    return load(path.read_bytes())


def read_ready(path: Path):
    return read_checkpoint(Checkpoint(path))


def read_blobs(path: Path) -> list[torch.Tensor]:
    model = read_checkpoint(Checkpoint(path))
    blobs = list(model.plain.values())
    while model.layers:  # one at a time, as the loader does
        _, layer = model.layers.popitem()
        blobs.append(to_blob(layer)[0])
    return blobs


class PeakMemory:
    """The largest anonymous memory of this process while a block runs, over what it was before; Linux only."""

    def __enter__(self) -> "PeakMemory":
        self.before = self.peak = _anonymous_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, _anonymous_bytes())

    def __exit__(self, *error: object) -> None:
        self.peak = max(self.peak, _anonymous_bytes())
        self._stop.set()
        self._thread.join()

    @property
    def grown(self) -> int:
        return self.peak - self.before


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def drop_pages(path: Path) -> None:
    """Forget the file's pages, so that the next read comes from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass(frozen=True)
class Cost:
    """Of one read."""

    wall: float
    cpu: float
    grown: int


def measure(read: Callable[[Path], object], path: Path, cold: bool) -> Cost:
    """One read, in a process that has given back what the one before it used."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    if cold:
        drop_pages(path)
    with PeakMemory() as memory:
        wall, cpu = time.perf_counter(), time.process_time()
        result = read(path)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    del result
    return Cost(wall, cpu, memory.grown)


def read_node(path: Path):
    from svdquant_pack.nodes.host.model.build import load_model_with_status

    return load_model_with_status(str(path), "auto")


def host_shapes(family: str) -> dict[str, tuple[int, ...]]:
    """Host tensor -> shape in the published model, as ComfyUI's own class has it."""
    from families.registry import FAMILIES

    found = next((known for name, known in FAMILIES.items() if name.startswith(family)), None)
    return {} if found is None else found.published_shapes


READS = {
    "through": read_through,
    "file": read_file,
    "bytes": read_bytes,
    "load": read_load,
    "ready": read_ready,
    "blobs": read_blobs,
}
BASES = ("through", "file", "bytes")  # what the others are compared with


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--double", type=int, default=19)
    parser.add_argument("--single", type=int, default=38)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cold", action="store_true", help="from the disk every time")
    parser.add_argument("--keep", action="store_true", help="do not delete the file afterwards")
    parser.add_argument("--family", default="", help="names of families with commas between them, or all")
    parser.add_argument("--gib", type=float, default=1.0, help="size of the file of a family; no larger than published")
    parser.add_argument("--precision", choices=("int4", "nvfp4"), default="nvfp4")
    parser.add_argument("--reads", default="", help="only these ways to read, with commas between them")
    parser.add_argument("--node", action="store_true", help="the whole loader node, too; needs ComfyUI")
    options = parser.parse_args(ARGUMENTS)
    if options.node:
        import svdquant_pack.nodes.host.model.build  # noqa: F401  not part of what is measured

        READS["node"] = read_node
    for name in list(READS):
        if options.reads and name not in (*BASES, *options.reads.split(",")):
            del READS[name]
    names = list(ARCHITECTURES) if options.family == "all" else [name for name in options.family.split(",") if name]
    sys.stdout.write(
        f"{'cold' if options.cold else 'warm'}; {options.rounds} rounds; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads; load of the machine {os.getloadavg()[0]:.1f}\n"
        f"| file | read | wall s | times {' | times '.join(BASES)} | CPU s | memory / file |\n"
        f"|---|---|---|{'---|' * len(BASES)}---|---|\n"
    )
    for name in names:
        family, rank = ARCHITECTURES[name], options.rank
        path = options.folder / f"synthetic-{name}-{options.precision}-{options.gib:g}.safetensors"
        shapes = host_shapes(name) if options.node else {}
        made = FamilyFile(family, family.published[0], random_output, options.precision, rank, shapes=shapes)
        measure_file(path, made.outputs(options.gib * 2**30), options)
    if not names:
        path = options.folder / f"synthetic-{options.double}-{options.single}-r{options.rank}.safetensors"
        measure_file(path, flux_outputs(options.double, options.single, options.rank), options)
    return 0


def measure_file(path: Path, outputs: list[Output], options: argparse.Namespace) -> None:
    """Write a file where it is not there yet, read it in every way, print its rows, and remove it."""
    if not path.exists():
        write_stream(path, outputs, {}, outputs)
    if not options.cold:
        measure(read_ready, path, cold=False)  # the file gets into the page cache
    rounds = [{n: measure(read, path, options.cold) for n, read in READS.items()} for _ in range(options.rounds)]
    size = path.stat().st_size
    for name in READS:
        wall, cpu = median(r[name].wall for r in rounds), median(r[name].cpu for r in rounds)
        walls = " | ".join(f"{median(r[name].wall / r[of].wall for r in rounds):.2f}" for of in BASES)
        grown = median(r[name].grown for r in rounds) / size
        shown = f"{path.stem} ({size / 2**30:.2f} GiB)"
        sys.stdout.write(f"| {shown} | {name} | {wall:.2f} | {walls} | {cpu:.2f} | {grown:.2f} |\n")
        sys.stdout.flush()
    if not options.keep:
        path.unlink()


if __name__ == "__main__":
    sys.exit(main())
