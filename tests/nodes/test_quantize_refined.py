"""Quantize Model with method refine: an ordinary file, nearer to the original, and nothing lost when it is stopped."""

import functools
from pathlib import Path

import comfy.model_management
import pytest
import torch
from cheap_quantizing import make_cheap
from nunchaku_unpacker import dense_layer
from quantize_node import quantize
from recordings import save, start
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sampling import relative_error, sample_flux
from tiny_files import HOST_NAMES

from svdquant_pack.nodes import quantize_model
from svdquant_pack.svdq_core.apply_layer import dense_weight
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.errors import SVDQuantError
from svdquant_pack.svdq_core.quantize import one_layer
from svdquant_pack.svdq_core.quantize.refine import RefineSpec

STEPS = 25


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    make_cheap(monkeypatch)
    monkeypatch.setattr(one_layer, "BEST_TURNS", 1)
    short = functools.partial(RefineSpec, steps=STEPS, samples=1, held_out=4)
    monkeypatch.setattr(quantize_model, "RefineSpec", short)


@pytest.fixture(scope="module")
def recorded(host, dense):
    """A recording of the tiny FLUX: four prompts, six steps each."""
    recording = start(host, dense, name="refined/tiny")
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        pooled = {"pooled_output": torch.randn(1, 64, generator=g), "guidance": 3.5}
        sample_flux(recording, steps=6, conditioning=[[torch.randn(1, 16, 128, generator=g), pooled]])
    return str(save(host, recording)[0].path)


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_the_file_is_an_ordinary_one_and_nearer(host, dense, recorded, precision):
    settings = {"precision": precision, "recorded": recorded}
    best, draft, _, _ = quantize(host, dense, method="best", filename_prefix="not-refined", **settings)
    model, path, report, _ = quantize(host, dense, method="refine", filename_prefix="refined", **settings)
    picture = sample_flux(model)
    errors = [relative_error(p, sample_flux(dense)) for p in (picture, sample_flux(best))]
    assert errors[0] < errors[1], (errors, report[-400:])
    again, _ = host.call("SVDQuantModelLoader", model_name=Path(path).name, compute="w4a8")
    assert torch.equal(sample_flux(again), picture)
    with safe_open(path, "pt") as file:
        note = file.metadata()["svdquant_refined"]
    assert f"steps {STEPS}" in note and "blocks" in note and note in report
    tensors, before = load_file(path), load_file(draft)
    assert [file.name for file in Path(path).parent.glob(f"{Path(path).stem}*")] == [
        Path(path).name
    ]  # no draft, no journal
    assert {name for name in before if name.endswith(".qweight")} == {n for n in tensors if n.endswith(".qweight")}
    layers = read_checkpoint(Checkpoint(Path(path))).layers
    for name, (host_name, index) in HOST_NAMES.items():
        assert torch.equal(tensors[f"{name}.qweight"], before[f"{name}.qweight"]), name
        part = layers[host_name].parts[index]
        if part.scheme != "awq":
            found = torch.from_numpy(dense_layer(tensors, name, part.act_unsigned)[0])
            ours = dense_weight(layers[host_name])[slice(*part.rows), slice(*part.columns)].double()
            assert relative_error(found, ours) < 1e-6, name


def test_without_calls_of_the_model_it_says_what_to_do(host, dense, recorded, tmp_path):
    with pytest.raises(SVDQuantError, match=r"trains on calls of the model .* Record a calibration"):
        quantize(host, dense, method="refine")
    older = tmp_path / "older.safetensors"
    with safe_open(recorded, "pt") as file:
        said = {key: text for key, text in file.metadata().items() if key != "calls kept"}
        save_file({n: file.get_tensor(n) for n in file.keys() if not n.startswith("@call")}, older, said)  # noqa: SIM118
    with pytest.raises(SVDQuantError, match=r"older\.safetensors holds no calls of the whole model.*Record it again"):
        quantize(host, dense, method="refine", recorded=str(older))


def test_cancelled_in_training_it_goes_on_from_there(host, dense, recorded, monkeypatch):
    settings = {"method": "refine", "filename_prefix": "stopped", "recorded": recorded}
    whole = Path(quantize(host, dense, **(settings | {"filename_prefix": "whole"}))[1]).read_bytes()
    steps = quantize_model.StepProgress.step

    def cancel(self, done, total, block):
        if done == STEPS + 5:
            raise comfy.model_management.InterruptProcessingException
        steps(self, done, total, block)

    with monkeypatch.context() as patch:
        patch.setattr(quantize_model.StepProgress, "step", cancel)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            quantize(host, dense, **settings)
    folder = host.output / "diffusion_models"
    assert list(folder.glob("*stopped*.draft")) and not list(folder.glob("*stopped.safetensors"))
    begun = []
    with monkeypatch.context() as patch:
        patch.setattr(quantize_model.StepProgress, "step", lambda self, done, total, block: begun.append(done))
        path = Path(quantize(host, dense, **settings)[1])
    assert begun[0] == STEPS  # the first block was there
    assert path.read_bytes() == whole
