"""Whole PixArt models and the states the host puts them into: saved, merged, compiled, unloaded, partly loaded."""

from pathlib import Path

import comfy.model_management
import comfy.sd
import pytest
import torch
from pixart_graphs import lora, sample
from sampling import relative_error, rounding

ORDER = rounding(2e-5)  # float32 on the CPU, the same weights, sums in another order


def saved(g, pixart, twin):
    g.host.call("ModelSave", model=pixart, filename_prefix="diffusion_models/pixart", prompt=None, extra_pnginfo=None)
    (file,) = (Path(g.host.output) / "diffusion_models").glob("pixart_*.safetensors")
    try:
        again = g("SVDQuantModelLoader", model_name=file.name, compute="w4a16")
    finally:
        file.unlink()
    return sample(g, again), sample(g, pixart)


def merged(g, pixart, twin):
    half = g("ModelMergeSimple", model1=twin, model2=pixart, ratio=0.5)
    return sample(g, half), sample(g, twin)  # both have the same weights, so half of each is the same again


def compiled(g, pixart, twin):
    patched, expected = (add(model, lora(), 0.5) for model in (pixart, twin))
    return sample(g, g("TorchCompileModel", model=patched, backend="eager")), sample(g, expected)


WHOLE_MODEL = {
    "TorchCompileModel": compiled,
    "ModelSave, loaded again": saved,
    "merging an SVDQuant model into a BF16 one": merged,
}


def add(model, file: dict, strength: float):
    return comfy.sd.load_lora_for_models(model, None, dict(file), strength, 0)[0]


@pytest.mark.parametrize("feature", WHOLE_MODEL)
def test_whole_model(graphs, pixart, twin, feature):
    picture, expected = WHOLE_MODEL[feature](graphs, pixart, twin)
    assert picture.isfinite().all()
    assert relative_error(picture, expected) < ORDER


@pytest.mark.parametrize("feature", ["merging into an SVDQuant model: refused with a sentence"])
def test_refused(graphs, pixart, twin, feature):
    with pytest.raises(Exception, match="cannot be merged into an SVDQuant model"):
        graphs("ModelMergeSimple", model1=pixart, model2=twin, ratio=0.5)


@pytest.fixture
def pictures(graphs, pixart):
    """Without a LoRA, and with two in turn: (models, their pictures)."""
    models = [pixart, add(pixart, lora(), 0.7), add(add(pixart, lora(seed=1), -0.4), lora(), 0.2)]
    return models, [sample(graphs, model) for model in models]


def again(graphs, models, expected) -> bool:
    return all(torch.equal(sample(graphs, m), picture) for m, picture in zip(models, expected, strict=True))


@pytest.mark.parametrize("state", ["another LoRA on a loaded model, without a reload"])
def test_loras_come_and_go(graphs, twin, pictures, state):
    models, expected = pictures
    assert relative_error(expected[1], expected[0]) > 1e-3 and relative_error(expected[2], expected[1]) > 1e-3
    assert relative_error(expected[1], sample(graphs, add(twin, lora(), 0.7))) < ORDER
    assert again(graphs, models[::-1], expected[::-1]) and again(graphs, models, expected)


@pytest.mark.parametrize("state", ["unload all and load again", "detach and load again"])
def test_unloaded(graphs, pixart, pictures, state):
    models, expected = pictures
    for model, picture in zip(models, expected, strict=True):
        if state.startswith("unload"):
            comfy.model_management.unload_all_models()
        else:
            model.detach()
        assert torch.equal(sample(graphs, model), picture)


@pytest.mark.parametrize("state", ["partial load, partial unload, full load"])
def test_partly_loaded(graphs, pixart, pictures, state):
    if pixart.is_dynamic():
        pytest.skip("dynamic VRAM pages; it has no partial states")
    models, expected = pictures
    with torch.inference_mode():
        for model, picture in zip(models[:2], expected[:2], strict=True):
            comfy.model_management.unload_all_models()
            model.patch_model(model.load_device, lowvram_model_memory=int(model.model_size() * 0.5))
            layers = model.svdquant_layers().values()
            assert 0 < sum(getattr(m, "comfy_patched_weights", False) is True for m in layers) < len(layers)
            assert torch.equal(sample(graphs, model), picture)
            assert model.partially_unload(model.offload_device, int(model.model_size() * 0.3)) > 0
            assert torch.equal(sample(graphs, model), picture)
    comfy.model_management.unload_all_models()


@pytest.mark.parametrize("state", ["the host's figure for the size, LoRAs included"])
def test_size(graphs, pixart, pictures, state):
    models, _ = pictures
    for model in models:
        sample(graphs, model)
        tensors = {id(t): t for t in [*model.model.parameters(), *model.model.buffers()]}
        assert abs(model.model_size() - sum(t.nbytes for t in tensors.values())) < 0.01 * model.model_size()
