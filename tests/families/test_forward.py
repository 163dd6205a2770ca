"""A tiny model of every family in the host: our layers give what the host's dense model of the same weights gives."""

import random

import comfy.lora
import comfy.sd
import comfy.utils
import pytest
import torch
from families.models import detected_as, forward, load_dense, load_quantized, tiny_tensors
from families.network import Sizes
from families.registry import FAMILIES
from sampling import relative_error, rounding

from svdquant_pack.nodes.host.model.build import load_model
from svdquant_pack.nodes.host.model.quantized_linear import SVDQuantLinear, operations
from svdquant_pack.svdq_core.errors import LoraError

SAME = rounding(1e-5)


class Pair:
    """Our MODEL and the host's dense one of the same weights, and what they give."""

    def __init__(self, name: str):
        self.name, self.family = name, FAMILIES[name]
        self.ours, self.dense = load_quantized(name), load_dense(name)
        self.expected = forward(name, self.dense)


@pytest.fixture(autouse=True)
def inference_mode():
    """As the host runs nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, host):
    return Pair(request.param)


def test_every_layer_of_the_blocks(pair):
    assert set(pair.ours.svdquant_layers()) == {f"diffusion_model.{name}.weight" for name in tiny_tensors(pair.name)[0]}
    assert pair.expected.isfinite().all() and pair.expected.std() > 0
    assert relative_error(forward(pair.name, pair.ours), pair.expected) < SAME
    assert pair.ours.model.memory_required([1, 16, 64, 64]) == pair.dense.model.memory_required([1, 16, 64, 64])
    assert pair.ours.model_size() < pair.dense.model_size()


def test_a_batch_and_odd_sizes(pair):
    sizes = Sizes(batch=2 if pair.family.batches else 1, side=(20, 12), frames=3, tokens=7, seed=2)
    ours, dense = (forward(pair.name, model, sizes=sizes) for model in (pair.ours, pair.dense))
    assert relative_error(ours, dense) < SAME


def test_what_the_class_has_besides(pair):
    for variant in pair.family.more:
        changed = forward(pair.name, pair.dense, variant=variant)
        assert relative_error(changed, pair.expected) > 1e-4, f"{variant} changes nothing"
        assert relative_error(forward(pair.name, pair.ours, variant=variant), changed) < SAME, variant


def lora_of_all_dialects(pair: Pair, key_map: dict, seed: int) -> tuple[dict[str, torch.Tensor], int]:
    """A LoRA with one entry for each quantized layer, its name spelled in one of the ways that the host knows."""
    layers = tiny_tensors(pair.name)[0]
    spelled: dict[str, list] = {name: [] for name in layers}
    for key, target in key_map.items():
        full, offset = (target, None) if isinstance(target, str) else target[:2]
        layer = full.removeprefix("diffusion_model.").removesuffix(".weight")
        if layer in spelled and (offset is None or offset[1] + offset[2] <= layers[layer].out_features):
            spelled[layer].append((key, offset))  # Lumina 2's map has offsets beyond the last row
    choose, g, file = random.Random(seed), torch.Generator().manual_seed(seed), {}
    for layer, spellings in spelled.items():
        size = [layers[layer].out_features, layers[layer].in_features]
        key, offset = choose.choice(spellings)
        if offset is not None:
            size[offset[0]] = offset[2]
        file[f"{key}.lora_A.weight"] = torch.randn(4, size[1], generator=g) * size[1] ** -0.5
        file[f"{key}.lora_B.weight"] = torch.randn(size[0], 4, generator=g) * 0.3
    return file, len({key for names in spelled.values() for key, _ in names})


def test_stock_loras_in_every_spelling(pair):
    key_map = comfy.lora.model_lora_keys_unet(pair.ours.model, {})
    assert key_map == comfy.lora.model_lora_keys_unet(pair.dense.model, {})
    file, spellings = lora_of_all_dialects(pair, key_map, seed=5)
    assert spellings >= 2 * len(tiny_tensors(pair.name)[0])  # ComfyUI's names and kohya's, if no others
    ours, dense = (comfy.sd.load_lora_for_models(m, None, dict(file), 0.7, 0)[0] for m in (pair.ours, pair.dense))
    assert len(ours.patches) == len(dense.patches) == len(tiny_tensors(pair.name)[0])
    expected = forward(pair.name, dense)
    assert relative_error(expected, pair.expected) > 1e-2
    assert relative_error(forward(pair.name, ours), expected) < SAME
    assert relative_error(forward(pair.name, pair.ours), pair.expected) < SAME  # and off again


def test_partly_loaded(pair):
    ours, device = pair.ours, pair.ours.load_device
    expected = forward(pair.name, ours)
    ours.unpatch_model(ours.offload_device)
    try:
        ours.patch_model(device, lowvram_model_memory=ours.model_size() // 2)
        if not ours.is_dynamic():
            waiting = [m for m in ours.svdquant_layers().values() if not getattr(m, "comfy_patched_weights", False)]
            assert len(waiting) > 0
        assert torch.equal(forward(pair.name, ours, load=False), expected)
        ours.partially_load(device, 1e12)
        assert torch.equal(forward(pair.name, ours, load=False), expected)
        ours.partially_unload(ours.offload_device, 1e12)
        assert torch.equal(forward(pair.name, ours, load=False), expected)
    finally:
        ours.unpatch_model(ours.offload_device)


def test_what_the_host_saves_is_the_same_model(pair, tmp_path):
    """Through our loader, and through the host's own with our layers."""
    path, metadata = tmp_path / f"{pair.name}.safetensors", pair.family.metadata
    comfy.utils.save_torch_file(pair.ours.state_dict_for_saving(), str(path), metadata=metadata)
    with detected_as(pair.family):
        again = load_model(str(path), "w4a16")
        state, options = comfy.utils.load_torch_file(str(path)), {"custom_operations": operations("w4a16")}
        host_loaded = comfy.sd.load_diffusion_model_state_dict(state, options)
    for model in (again, host_loaded):
        loaded = {n: m for n, m in model.model.named_modules() if isinstance(m, SVDQuantLinear)}
        assert {f"{name}.weight" for name in loaded} == set(pair.ours.svdquant_layers())
        for name, module in loaded.items():
            stored, layout = pair.ours.svdquant_layers()[f"{name}.weight"].stored()
            assert module.layout == layout and torch.equal(module._parameters["weight"].cpu(), stored.cpu()), name
        assert relative_error(forward(pair.name, model), pair.expected) < SAME


@pytest.mark.parametrize(("part", "rows"), [("to_k", 192), ("to_v", 192), ("to_v", 384)])
def test_lumina2_names_that_the_host_maps_to_wrong_rows(host, part, rows):
    """As if there were as many heads of keys as of queries: 192 rows become 384, and the last begin where none are."""
    file = {"transformer.layers.0.attention." + part + ".lora_A.weight": torch.ones(4, 384)}
    file["transformer.layers.0.attention." + part + ".lora_B.weight"] = torch.ones(rows, 4)
    with pytest.raises(LoraError, match=r"layers\.0\.attention\.qkv"):
        comfy.sd.load_lora_for_models(load_quantized("lumina2"), None, file, 1.0, 0)
