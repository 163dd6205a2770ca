"""Quantize Model with method refine: an ordinary file, nearer to the original, and nothing lost when it is stopped."""

import functools
from pathlib import Path

import comfy.model_management
import pytest
import torch
from cheap_quantizing import make_cheap
from nunchaku_unpacker import dense_layer
from quantize_node import quantize
from safetensors import safe_open
from safetensors.torch import load_file
from sampling import relative_error, sample_flux
from tiny_files import HOST_NAMES

from svdquant_pack.nodes import quantize_model
from svdquant_pack.nodes.host.quantize import refine_samples
from svdquant_pack.svdq_core.apply_layer import dense_weight
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.quantize import one_layer
from svdquant_pack.svdq_core.quantize.refine import RefineSpec

STEPS = 25


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    make_cheap(monkeypatch)
    monkeypatch.setattr(one_layer, "BEST_TURNS", 1)
    for name, value in (("SAMPLES", 16), ("SIDES", (16,)), ("TEXT_TOKENS", 16)):
        monkeypatch.setattr(refine_samples, name, value)
    short = functools.partial(RefineSpec, steps=STEPS, samples=1, held_out=4)
    monkeypatch.setattr(quantize_model, "RefineSpec", short)


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_the_file_is_an_ordinary_one_and_nearer(host, dense, precision):
    best, draft, _, _ = quantize(host, dense, precision=precision, method="best", filename_prefix="not-refined")
    model, path, report, _ = quantize(host, dense, precision=precision, method="refine", filename_prefix="refined")
    picture = sample_flux(model)
    errors = [relative_error(p, sample_flux(dense)) for p in (picture, sample_flux(best))]
    assert errors[0] < errors[1], (errors, report[-400:])
    again, _ = host.call("SVDQuantModelLoader", model_name=Path(path).name, compute="w4a8")
    assert torch.equal(sample_flux(again), picture)
    with safe_open(path, "pt") as file:
        note = file.metadata()["svdquant_refined"]
    assert f"steps {STEPS}" in note and "blocks" in note and note in report
    tensors, before = load_file(path), load_file(draft)
    assert not list(Path(path).parent.glob("*.draft*")) and not list(Path(path).parent.glob("*.journal"))
    assert {name for name in before if name.endswith(".qweight")} == {n for n in tensors if n.endswith(".qweight")}
    layers = read_checkpoint(Checkpoint(Path(path))).layers
    for name, (host_name, index) in HOST_NAMES.items():
        assert torch.equal(tensors[f"{name}.qweight"], before[f"{name}.qweight"]), name
        part = layers[host_name].parts[index]
        if part.scheme != "awq":
            found = torch.from_numpy(dense_layer(tensors, name, part.act_unsigned)[0])
            ours = dense_weight(layers[host_name])[slice(*part.rows), slice(*part.columns)].double()
            assert relative_error(found, ours) < 1e-6, name


def test_cancelled_in_training_it_goes_on_from_there(host, dense, monkeypatch):
    settings = {"method": "refine", "filename_prefix": "stopped"}
    whole = Path(quantize(host, dense, method="refine", filename_prefix="whole")[1]).read_bytes()
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
