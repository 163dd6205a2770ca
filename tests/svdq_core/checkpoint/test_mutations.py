"""Thousands of damaged files: each is read in bounded time and memory, and refused in one sentence or still sound."""

import sys
import time
from contextlib import contextmanager
from pathlib import Path
from random import Random

import mutations
import pytest
import torch
from checkpoint_files import TINY, write_pixart, write_tensors
from comfy_files import ComfyFile
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lite_folders import lite_tensors
from native_folders import pixart_folder, write_native
from packed_files import write_packed

from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.errors import CheckpointError
from svdquant_pack.svdq_core.values import FLOAT

FILES = 2000  # of safetensors
FOLDERS = 200  # with pickles
SLOWEST = 20.0  # seconds for one file; the machine may be busy
EXTRA_MEMORY = 3 << 30  # that reading may ask for; a header may promise 100 TB

exhaustive = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@contextmanager
def bounded_memory():
    """Allocating much more than a file has fails, where the system can count."""
    if sys.platform != "linux":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def structure(model):
    """What a mutation must not change unnoticed."""
    layers = {
        name: [(p.scheme, p.rows, p.columns, p.act_unsigned) for p in layer.parts]
        for name, layer in model.layers.items()
    }
    return layers, {name: tensor.ndim for name, tensor in model.plain.items()}


def read_or_refuse(path: Path, shown: str):
    """The model, or None where it was refused as it should be; anything else fails."""
    started = time.perf_counter()
    try:
        with bounded_memory():
            model = read_checkpoint(Checkpoint(path))
    except CheckpointError as error:
        text = str(error)
        assert text.startswith(shown) and text.rstrip().endswith((".", ")")) and len(text) < 2000, text
        model = None
    assert time.perf_counter() - started < SLOWEST
    return model


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """One sound file of every kind."""
    folder = tmp_path_factory.mktemp("sound")
    paths = {
        "nunchaku int4": TINY["int4"],
        "nunchaku nvfp4": TINY["nvfp4"],
        "pixart": write_pixart(folder / "pixart.safetensors"),
        "comfy": ComfyFile().write(folder / "comfy.safetensors"),
        "comfy tiled": ComfyFile("pixart", spelling="comfy-kitchen", tiled=True).write(folder / "tiled.safetensors"),
        "lite": write_tensors(folder / "lite.safetensors", lite_tensors()),
        "packed": write_packed(folder / "packed.safetensors", TINY["nvfp4"]),
    }
    found = {name: mutations.Original(path.read_bytes()) for name, path in paths.items()}
    expected = {name: structure(read_checkpoint(Checkpoint(path))) for name, path in paths.items()}
    return found, expected


def test_mutated_files(originals, tmp_path, capsys):
    files, expected = originals
    counts = {"refused": 0, "sound": 0}
    path = tmp_path / "mutated.safetensors"

    @settings(exhaustive, max_examples=FILES)
    @given(st.sampled_from(sorted(files)), st.sampled_from(mutations.ALL), st.integers(0, 2**32 - 1))
    def check(kind, mutation, seed):
        data, legal = mutation(Random(seed), files[kind])
        path.write_bytes(data)
        model = read_or_refuse(path, "mutated.safetensors: ")
        counts["refused" if model is None else "sound"] += 1
        if model is None:
            return
        assert legal, f"{kind}, {mutation.__name__}, seed {seed}: accepted"
        if mutation is not mutations.block_index:
            assert structure(model) == expected[kind], f"{kind}, {mutation.__name__}, seed {seed}"
        for layer in model.layers.values():
            layer.check("accepted")
        assert all(t.dtype in FLOAT and bool(torch.isfinite(t).all()) for t in model.plain.values())

    check()
    total = sum(counts.values())
    with capsys.disabled():
        sys.stdout.write(f"\n{total} mutated files: {counts['refused']} refused, {counts['sound']} still sound\n")
    assert total >= FILES and counts["refused"] > total / 2 and counts["sound"] > 100


def damaged_pickle(random, data):
    """A file of torch.save with bytes changed, cut off, or added."""
    kind = random.choice(["cut", "flip", "flip at the end", "append", "noise"])
    if kind == "cut":
        return data[: random.randrange(len(data))]
    if kind == "append":
        return data + random.randbytes(random.randint(1, 1000))
    if kind == "noise":
        return random.randbytes(random.randint(0, 500))
    changed = bytearray(data)
    start = 0 if kind == "flip" else len(data) - 4000  # the directory of the zip is there
    for _ in range(random.randint(1, 30)):
        changed[random.randrange(max(start, 0), len(data))] = random.randrange(256)
    return bytes(changed)


def test_mutated_pickles(tmp_path, capsys):
    """Bytes of a storage may change unseen; nothing else may happen than a sentence or a model."""
    folder = write_native(tmp_path / "run", pixart_folder())
    sound = {path.name: path.read_bytes() for path in folder.iterdir()}
    counts = {"refused": 0, "sound": 0}

    @settings(exhaustive, max_examples=FOLDERS)
    @given(st.sampled_from(sorted(sound)), st.integers(0, 2**32 - 1))
    def check(name, seed):
        (folder / name).write_bytes(damaged_pickle(Random(seed), sound[name]))
        model = read_or_refuse(folder, "run")
        counts["refused" if model is None else "sound"] += 1
        if model is not None:
            for layer in model.layers.values():
                layer.check("accepted")
        (folder / name).write_bytes(sound[name])

    check()
    with capsys.disabled():
        sys.stdout.write(
            f"\n{sum(counts.values())} mutated pickles: {counts['refused']} refused, {counts['sound']} read\n"
        )
    assert sum(counts.values()) >= FOLDERS
