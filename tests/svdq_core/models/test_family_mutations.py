"""Damaged files of other families: a sentence, or a model whose layers are sound; nothing else, and no hanging."""

import time
from random import Random

import mutations
import pytest
import torch
from checkpoint_files import read_tensors, write_tensors
from dialect_cells import CELLS
from file_mutations import Original
from tiny_files import DATA

from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint, read_text_encoder
from svdquant_pack.svdq_core.errors import CheckpointError
from svdquant_pack.svdq_core.values import FLOAT

FILES = 70  # of each kind
FEWER = 25  # of each way to store a model
MUTATIONS = [m for m in mutations.ALL if m is not mutations.block_index]  # which knows only names with "blocks"
SLOWEST = 20.0  # seconds for one file; the machine may be busy


@pytest.mark.parametrize("name", ["zimage_nvfp4", "krea2_int4", "t5_awq"])
def test_damaged_files(name, tmp_path):
    check_damaged(name, Original((DATA / "families" / f"{name}.safetensors").read_bytes()), FILES, tmp_path)


@pytest.mark.parametrize("title", ["Nunchaku Lite", "diffuse-compressor", "ModelOpt", "comfy-native", "vLLM-Omni"])
def test_damaged_files_of_other_writers(title, tmp_path):
    cell = CELLS["zimage", title]("zimage", tmp_path)
    (whole,) = Checkpoint(cell.path).files
    if cell.path.is_dir():  # what its config says is in the metadata, too
        tensors, metadata = read_tensors(whole)
        write_tensors(whole, tensors, metadata | {"config": (whole.parent / "config.json").read_text()})
    check_damaged(title, Original(whole.read_bytes()), FEWER, tmp_path)


def check_damaged(name, original, files, tmp_path):
    """A sentence, or a sound model, for each of so many mutations."""
    path, refused = tmp_path / "damaged.safetensors", 0
    for seed in range(files):
        random = Random(seed)
        mutation = random.choice(MUTATIONS)
        path.write_bytes(mutation(random, original)[0])
        started = time.perf_counter()
        try:
            checkpoint = Checkpoint(path)
            model = read_text_encoder(checkpoint) if name == "t5_awq" else read_checkpoint(checkpoint)
        except CheckpointError as error:
            text = str(error)
            assert text.startswith("damaged.safetensors: ") and len(text) < 2000, (mutation.__name__, seed, text)
            refused += 1
        else:
            for host, layer in model.layers.items():
                layer.check(host)
            assert all(t.dtype in FLOAT and bool(torch.isfinite(t).all()) for t in model.plain.values())
        assert time.perf_counter() - started < SLOWEST, (mutation.__name__, seed)
    assert refused > files / 3
