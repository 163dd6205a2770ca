"""Damaged files of other families: a sentence, or a model whose layers are sound; nothing else, and no hanging."""

import time
from random import Random

import mutations
import pytest
import torch
from file_mutations import Original
from tiny_files import DATA

from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint, read_text_encoder
from svdquant_pack.svdq_core.errors import CheckpointError
from svdquant_pack.svdq_core.values import FLOAT

FILES = 70  # of each kind
MUTATIONS = [m for m in mutations.ALL if m is not mutations.block_index]  # which knows only names with "blocks"
SLOWEST = 20.0  # seconds for one file; the machine may be busy


@pytest.mark.parametrize("name", ["zimage_nvfp4", "krea2_int4", "t5_awq"])
def test_damaged_files(name, tmp_path):
    original = Original((DATA / "families" / f"{name}.safetensors").read_bytes())
    path, refused = tmp_path / "damaged.safetensors", 0
    for seed in range(FILES):
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
    assert refused > FILES / 3
