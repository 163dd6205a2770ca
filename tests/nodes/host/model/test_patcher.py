"""Every state into which the host can put a model: the same picture, bit for bit, with and without LoRAs and hooks.

On a CPU the host's estimate-based patcher runs; loading "to the card" and "to the CPU" are then one device, but every
override, list and buffer goes through the same steps. The same tests run on a GPU with `pytest --host-device gpu`.
"""

import gc
from types import SimpleNamespace

import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.utils
import pytest
import torch
from comfy_extras import nodes_model_merging
from lora_files import diffusers_lora
from network_runs import NetworkRun
from safetensors import safe_open
from sampling import flux_conditioning, relative_error, rounding, sample_flux

from svdquant_pack.demo.random_pixart import random_autoencoder
from svdquant_pack.nodes.host.model.build import load_model
from svdquant_pack.nodes.host.model.patcher import SVDQuantPatcher, SVDQuantPatcherDynamic

# float32 on the CPU, the same weights, sums in another order
ORDER = rounding(2e-6)


@pytest.fixture(scope="module")
def with_lora(model, add):
    return add(model, diffusers_lora(5), 0.8)


@pytest.fixture(scope="module")
def lora_picture(with_lora):
    return sample_flux(with_lora)


def unload() -> None:
    comfy.model_management.unload_all_models()
    gc.collect()


def factors_left(model) -> int:
    return sum(name in ("lora_down", "lora_up") for m in model.model.modules() for name in m._buffers)


def test_the_patcher_is_the_hosts_own_object(model):
    assert type(model) in (SVDQuantPatcher, SVDQuantPatcherDynamic)
    assert isinstance(model, comfy.model_patcher.ModelPatcher)
    assert type(model.clone()) is type(model)


def test_the_stock_loader_patches_every_layer_of_the_lora(model, with_lora):
    assert not model.patches
    assert sum(len(p) for p in with_lora.patches.values()) == len(diffusers_lora(5)) // 3


def test_lora_equals_the_hosts_own_model_with_it(dense, plain, lora_picture, add):
    assert relative_error(lora_picture, plain) > 0.05
    assert relative_error(lora_picture, sample_flux(add(dense, diffusers_lora(5), 0.8))) < ORDER


def test_strengths_and_stacks_come_and_go(model, with_lora, plain, lora_picture, dense, add):
    weak = sample_flux(add(model, diffusers_lora(5), 0.3))
    assert 0 < relative_error(weak, plain) < relative_error(lora_picture, plain)
    assert torch.equal(sample_flux(with_lora), lora_picture)
    both = add(with_lora, diffusers_lora(6), 0.5)
    expected = sample_flux(add(add(dense, diffusers_lora(5), 0.8), diffusers_lora(6), 0.5))
    assert relative_error(sample_flux(both), expected) < ORDER
    assert torch.equal(sample_flux(with_lora), lora_picture)
    assert torch.equal(sample_flux(model), plain)


def test_unloading_leaves_nothing_behind(model, with_lora, plain, lora_picture):
    assert torch.equal(sample_flux(with_lora), lora_picture)
    assert factors_left(model)
    unload()
    assert not factors_left(model)
    assert not any(m.weight_function for m in model.model.modules() if hasattr(m, "weight_function"))
    assert torch.equal(sample_flux(model), plain)
    unload()
    assert torch.equal(sample_flux(with_lora), lora_picture)


def test_detach_and_again(model, with_lora, plain, lora_picture):
    sample_flux(with_lora)
    with_lora.detach()
    assert torch.equal(sample_flux(model), plain)
    model.detach()
    assert torch.equal(sample_flux(with_lora), lora_picture)


def test_two_models_in_turn(path, model, with_lora, plain, lora_picture):
    with torch.inference_mode():
        other = load_model(str(path), "w4a4")
    first = sample_flux(other)
    assert not torch.equal(first, plain)
    assert torch.equal(sample_flux(with_lora), lora_picture)
    assert torch.equal(sample_flux(other), first)
    assert torch.equal(sample_flux(model), plain)


@pytest.fixture
def direct(model):
    if model.is_dynamic():
        pytest.skip("dynamic VRAM pages; it has no partial states")
    unload()
    yield NetworkRun(model)
    model.detach()


def layers_on_their_way(model) -> int:
    """Quantized layers that the host counts as not loaded."""
    return sum(getattr(m, "comfy_patched_weights", False) is not True for m in model.svdquant_layers().values())


def test_out_of_memory_in_a_step_leaves_the_next_prompt_right(model, with_lora, plain, lora_picture):
    """The host ends such a prompt by unloading every model, from wherever the step broke off."""

    def broken(run, arguments):
        run(arguments["input"], arguments["timestep"], **arguments["c"])
        raise torch.OutOfMemoryError("CUDA out of memory.")

    for source, expected in ((with_lora, lora_picture), (model, plain)):
        greedy = source.clone()
        greedy.set_model_unet_function_wrapper(broken)
        with pytest.raises(torch.OutOfMemoryError):
            sample_flux(greedy)
        unload()
        assert torch.equal(sample_flux(source), expected)


def test_partial_load_and_unload(model, add, direct):
    # on quantized layers alone: another that is not loaded is patched by the host, which rounds it otherwise on a GPU
    with_lora = add(
        model, {name: t for name, t in diffusers_lora(5).items() if not name.startswith("transformer.proj_out")}, 0.8
    )
    device, offload = model.load_device, model.offload_device
    model.patch_model(device)
    expected = direct()
    model.unpatch_model(offload)
    with_lora.patch_model(device)
    expected_lora = direct()
    assert relative_error(expected_lora, expected) > 0.05
    with_lora.unpatch_model(offload)

    part = int(with_lora.model_size() * 0.8)
    with_lora.patch_model(device, lowvram_model_memory=part)
    assert 0 < layers_on_their_way(model) < len(model.svdquant_layers())
    assert torch.equal(direct(), expected_lora)
    with_lora.partially_load(device, 1e9)
    assert layers_on_their_way(model) == 0
    assert torch.equal(direct(), expected_lora)

    freed = with_lora.partially_unload(offload, part)
    assert freed >= part * 0.5 and layers_on_their_way(model) > 0
    assert not any(m.weight_function for m in model.svdquant_layers().values())  # the host would patch our bytes
    assert torch.equal(direct(), expected_lora)
    with_lora.partially_unload(offload, 1e12)
    assert torch.equal(direct(), expected_lora)
    with_lora.unpatch_model(offload)
    model.patch_model(device)
    assert torch.equal(direct(), expected)


@pytest.mark.parametrize("strength", [0.8, 0.4])
def test_a_lora_as_hook_equals_the_lora(model, plain, strength, add):
    hook = comfy.hooks.create_hook_lora(diffusers_lora(5), strength, 0.0)
    hooked = comfy.hooks.set_hooks_for_conditioning(flux_conditioning(), hook)
    limit = 0.0 if comfy.model_management.cpu_mode() else 1e-2  # a GPU's kernels sum other batches in another order
    expected = sample_flux(add(model, diffusers_lora(5), strength))
    assert relative_error(sample_flux(model.clone(), conditioning=hooked), expected) <= limit
    assert torch.equal(sample_flux(model), plain)


def test_a_hook_on_top_of_a_lora(model, plain, dense, add):
    hooked = comfy.hooks.set_hooks_for_conditioning(
        flux_conditioning(), comfy.hooks.create_hook_lora(diffusers_lora(5), 0.8, 0.0)
    )
    below = add(model, diffusers_lora(6), 0.5)
    expected = sample_flux(add(add(dense, diffusers_lora(6), 0.5), diffusers_lora(5), 0.8))
    assert relative_error(sample_flux(below.clone(), conditioning=hooked), expected) < ORDER
    assert torch.equal(sample_flux(model), plain)


def test_a_scheduled_hook_follows_its_keyframes(model, dense, add):
    def scheduled(target):
        group = comfy.hooks.create_hook_lora(diffusers_lora(5), 1.0, 0.0)
        keyframes = comfy.hooks.HookKeyframeGroup()
        for percent, strength in ((0.0, 0.2), (0.5, 1.0), (0.75, 0.0)):
            keyframes.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=percent))
        group.set_keyframes_on_hooks(keyframes)
        conditioning = comfy.hooks.set_hooks_for_conditioning(flux_conditioning(), group)
        return sample_flux(target.clone(), conditioning=conditioning)

    picture = scheduled(model)
    if not dense.is_dynamic():  # the host's own model fails with hooks on weights of two dtypes
        assert relative_error(picture, scheduled(dense)) < ORDER
    assert relative_error(picture, sample_flux(add(model, diffusers_lora(5), 1.0))) > 0.01


@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize("has_lora", [False, True])
def test_what_the_host_saves_is_loaded_by_us(host, model, with_lora, plain, lora_picture, loaded, has_lora):
    source, expected = (with_lora, lora_picture) if has_lora else (model, plain)
    unload()
    if loaded:
        sample_flux(source)
    with torch.inference_mode():
        nodes_model_merging.ModelSave().save(source, "diffusion_models/saved")
    (file,) = (host.output / "diffusion_models").glob("saved_*.safetensors")
    with torch.inference_mode():
        again = load_model(str(file), "w4a16")
    file.unlink()
    if not has_lora:
        saved = again.model.state_dict()
        assert all(torch.equal(saved[key].cpu(), tensor.cpu()) for key, tensor in model.model.state_dict().items())
    # the LoRA becomes extra rank of the low-rank branch, whose file dtype is bfloat16; without one all tensors are the
    # same, but lie elsewhere in memory: the CPU's matrix product takes another path for another alignment
    assert relative_error(sample_flux(again), expected) < (rounding(5e-3) if has_lora else ORDER)
    assert torch.equal(sample_flux(source), expected)


def tiny_text_encoder() -> comfy.sd.CLIP:
    """The host's CLIP-L of FLUX with one narrow layer."""
    config = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 64}
    config |= {"hidden_act": "quick_gelu", "eos_token_id": 49407}
    target = SimpleNamespace(params={}, clip=comfy.sd1_clip.SD1ClipModel, tokenizer=comfy.sd1_clip.SD1Tokenizer)
    clip = comfy.sd.CLIP(target, model_options={"clip_l_model_config": config})
    # with dynamic VRAM nothing has data before a state dict has brought some
    g = torch.Generator().manual_seed(0)
    tensors = clip.cond_stage_model.state_dict().items()
    weights = {n: torch.randn(t.shape, generator=g).to(t.dtype) / 50 for n, t in tensors if t.is_floating_point()}
    clip.load_sd(weights, full_model=True)
    return clip


def test_a_checkpoint_with_text_encoder_and_autoencoder_is_loaded_by_us(host, with_lora, lora_picture):
    halves = {"encoder": random_autoencoder(encoder=True), "decoder": random_autoencoder(encoder=False)}
    vae = comfy.sd.VAE(sd={f"taesd_{half}.{name}": t for half, ts in halves.items() for name, t in ts.items()})
    with torch.inference_mode():
        nodes_model_merging.CheckpointSave().save(with_lora, tiny_text_encoder(), vae, "diffusion_models/whole")
    (file,) = (host.output / "diffusion_models").glob("whole_*.safetensors")
    with safe_open(file, "pt") as saved:
        others = [key for key in saved.keys() if not key.startswith("model.diffusion_model.")]  # noqa: SIM118
    assert {key.split(".")[0] for key in others} == {"text_encoders", "vae"}
    with torch.inference_mode():
        again = load_model(str(file), "w4a16")
    file.unlink()
    assert relative_error(sample_flux(again), lora_picture) < rounding(5e-3)


def test_merging_from_us_into_a_dense_model(model, dense, with_lora, plain, lora_picture):
    for source, expected in ((model, plain), (with_lora, lora_picture)):
        merged = dense.clone()
        merged.add_patches(source.get_key_patches("diffusion_model."), 1.0, 0.0)
        assert relative_error(sample_flux(merged), expected) < ORDER


def test_arguments_reach_the_host_by_name(model, monkeypatch):
    """Multi-GPU packs replace the host's method by one whose parameters stand in another order."""
    if model.is_dynamic():
        pytest.skip("dynamic VRAM knows no forced patching")
    given = []

    def replacement(self, device_to, extra_memory=0, full_load=False, force_patch_weights=False):
        given.append((extra_memory, full_load, force_patch_weights))
        return 0

    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "partially_load", replacement)
    model.partially_load(model.load_device, 5, force_patch_weights=True)
    model.partially_load(model.load_device, 6, full_load=True, force_patch_weights=True)
    assert given == [(5, False, True), (6, True, True)]
