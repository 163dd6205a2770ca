"""The shipped models draw what captions say, and the LoRA does what its name says."""

import pytest
import torch
from safetensors import safe_open

from svdquant_pack.demo.captions import STYLES, draw_captions
from svdquant_pack.demo.install import DECODER, ENCODER, FLUX, LORA, MODELS, READER
from svdquant_pack.demo.model_files import read_model
from svdquant_pack.demo.reader import Reader, read
from svdquant_pack.research.training.lora import attach, lora_weights
from svdquant_pack.research.training.outline import outline_figures, outline_overlaps
from svdquant_pack.research.training.renderer import place, render
from svdquant_pack.research.training.sampler import draw
from svdquant_pack.research.training.small_flux import Flux
from svdquant_pack.research.training.taef1 import decoder, encoder

CPU = torch.device("cpu")
FILES = (FLUX, ENCODER, DECODER, READER, LORA)
MOST_BYTES, MOST_FLUX_BYTES = 30_000_000, 17_000_000
STEPS = 4


@pytest.fixture(scope="module")
def captions():
    return draw_captions(4, torch.Generator().manual_seed(5), held_out=True)


@pytest.fixture(scope="module")
def models():
    makers = {FLUX: Flux, ENCODER: encoder, DECODER: decoder, READER: Reader}
    return {name: read_model(make(), MODELS / name, CPU) for name, make in makers.items()}


@pytest.mark.parametrize("name", FILES)
def test_files_say_where_they_come_from(name):
    with safe_open(MODELS / name, "pt") as file:
        facts = file.metadata()
    assert facts["license"] == "Apache-2.0"
    for fact in ("title", "source", "recipe", "seed", "steps", "seconds", "device", "torch"):
        assert facts[fact], fact


def test_files_are_small():
    sizes = {path.name: path.stat().st_size for path in MODELS.iterdir()}
    assert set(FILES) == {name for name in sizes if name.endswith(".safetensors")}
    assert sizes[FLUX] < MOST_FLUX_BYTES
    assert sum(sizes.values()) < MOST_BYTES


def test_flux_draws_captions(models, captions):
    pictures = draw(models[FLUX], models[DECODER], captions, seed=5, steps=STEPS)
    assert read(models[READER], pictures, captions).scenes.all()
    assert outline_figures(outline_overlaps(pictures, captions))["mean IoU"] > 0.93


def test_reader_and_autoencoder_are_no_hindrance(models, captions):
    generator = torch.Generator().manual_seed(0)
    style = torch.tensor([STYLES.index(name) for name in ("filled", "striped", "filled", "striped")])
    pictures = render(captions, place(captions, generator), style)
    reading = read(models[READER], models[DECODER](models[ENCODER](pictures)).clamp(0, 1), captions)
    assert reading.scenes.all()
    assert torch.equal(reading.style, style)


def test_lora_makes_stripes_and_changes_nothing_else(models, captions):
    model = read_model(Flux(), MODELS / FLUX, CPU)
    adapters = attach(model, 16)
    with safe_open(MODELS / LORA, "pt") as file, torch.no_grad():
        for name, weight in lora_weights(adapters).items():
            weight.copy_(file.get_tensor(name))
    plain, striped = (
        read(models[READER], draw(network, models[DECODER], captions, seed=5, steps=STEPS), captions)
        for network in (models[FLUX], model)
    )
    assert not (plain.style == STYLES.index("striped")).any()
    assert (striped.style == STYLES.index("striped")).all()
    assert striped.scenes.sum() >= len(captions) - 1
