"""LoRAs on the layers of a model: what changes is made, what stays is left, and the host counts it all."""

import comfy.hooks
import comfy.model_management
import pytest
import torch
from lora_files import adapter_file, diffusers_lora
from sampling import flux_conditioning, rounding, sample_flux

from svdquant_pack.nodes.host.lora.install import factor_bytes, planned_bytes


def test_off_on_off_on(model, plain, add):
    with_lora = add(model, diffusers_lora(5))
    picture = sample_flux(with_lora)
    other = add(add(model, diffusers_lora(6), 0.3), diffusers_lora(5))
    for _ in range(2):
        assert torch.equal(sample_flux(model), plain)
        assert torch.equal(sample_flux(with_lora), picture)
        sample_flux(other)


def addresses(model) -> dict[str, int]:
    """Where each weight and factor lies in memory."""
    return {n: t.data_ptr() for n, t in [*model.model.named_parameters(), *model.model.named_buffers()]}


def test_another_strength_moves_nothing(model, add):
    sample_flux(add(model, diffusers_lora(5), 0.5))
    before = addresses(model)
    strong = add(model, diffusers_lora(5), 0.9)
    picture = sample_flux(strong)
    after = addresses(model)
    assert sum("lora_" in name for name in before) == 14
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    if model.is_dynamic():  # the host keeps small weights that are not quantized wherever it likes
        changed = {name for name in changed if ".norm." not in name}
    # not quantized: the host patches a copy; and the schedule is of the last sampling
    assert changed <= {"diffusion_model.final_layer.linear.weight", "model_sampling.sigmas"}
    model.detach()
    assert torch.equal(sample_flux(strong), picture)


def test_another_lora_beside_keeps_the_columns_of_the_first(model, add, monkeypatch):
    from svdquant_pack.nodes.host.lora import factors as lora

    made = []
    original = lora._write_down
    monkeypatch.setattr(lora, "_write_down", lambda target, block: (made.append(block), original(target, block)))
    model.detach()
    first = add(model, diffusers_lora(5), 0.5)
    sample_flux(first)
    assert len(made) == 10 - 1  # the unquantized layer is the host's
    made.clear()
    both = add(first, diffusers_lora(6), 0.5)
    picture = sample_flux(both)
    assert len(made) == 9
    made.clear()
    sample_flux(first)
    assert not made
    model.detach()
    assert torch.equal(sample_flux(both), picture)


def test_the_host_counts_what_loras_take(model, add):
    base = model.model_size()
    ours = add(add(model, diffusers_lora(5)), adapter_file("LoKr"), 0.5)
    planned = planned_bytes(ours)
    assert ours.model_size() == base + planned and ours.clone().model_size() == base + planned
    sample_flux(ours)
    assert sum(factor_bytes(m) for m in model.svdquant_layers().values()) == planned > 0
    if model.is_dynamic():
        return  # which counts pages of 32 MiB
    assert ours.loaded_size() == ours.model_size()
    sample_flux(model)  # exchanged, not reloaded
    assert model.loaded_size() == model.model_size() == base
    sample_flux(ours)
    assert ours.loaded_size() == base + planned


def test_a_partly_loaded_model_counts_factors_with_their_layers(model, add):
    if model.is_dynamic():
        pytest.skip("dynamic VRAM pages; it has no partial states")
    ours = add(model, diffusers_lora(5))
    comfy.model_management.unload_all_models()
    ours.patch_model(ours.load_device, lowvram_model_memory=int(ours.model_size() * 0.7))

    def loaded() -> int:
        modules = [m for m in model.model.modules() if getattr(m, "comfy_patched_weights", False) is True]
        return sum(t.nbytes for m in modules for t in [*m._parameters.values(), *m._buffers.values()] if t is not None)

    assert 0 < ours.loaded_size() == loaded() < ours.model_size()
    freed = ours.partially_unload(ours.offload_device, int(ours.loaded_size() * 0.3))
    assert freed > 0 and ours.loaded_size() == loaded()
    ours.unpatch_model(ours.offload_device)
    assert ours.loaded_size() == 0


def test_believed_size_is_real_size(model):
    sample_flux(model)
    tensors = {id(t): t for t in [*model.model.parameters(), *model.model.buffers()]}
    assert model.model_size() == sum(t.nbytes for t in tensors.values())
    for module in model.svdquant_layers().values():
        inner = sum(t.nbytes for p in module.layer().parts for t in p.tensors.values())
        believed = comfy.model_management.module_size(module)
        assert inner <= believed - (0 if module.bias is None else module.bias.nbytes) <= inner + 256 * 16


def test_no_tensor_stays_after_a_lora_is_gone(model, add):
    sample_flux(add(model, adapter_file("difference")))
    assert any(m.lora_tensors() for m in model.svdquant_layers().values())
    sample_flux(model)
    assert not any(m.lora_tensors() or m.lora_spares for m in model.svdquant_layers().values())


def test_hooks_that_switch_within_a_step_make_their_factors_once(model, dense, plain, monkeypatch):
    """A LoRA on the positive conditioning alone: two states in every step."""
    import comfy.sample

    from svdquant_pack.nodes.host.lora import install

    def sample(target, steps=4):
        hook = comfy.hooks.create_hook_lora(diffusers_lora(5), 0.8, 0.0)
        positive = comfy.hooks.set_hooks_for_conditioning(flux_conditioning(), hook)
        shape = (1, 16, 16, 16)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        conditioning = positive, flux_conditioning()
        with torch.inference_mode():
            settings = steps, 3.0, "euler", "simple", *conditioning, torch.zeros(shape)
            return comfy.sample.sample(target.clone(), noise, *settings, disable_pbar=True, seed=0).clone()

    made = []
    original = install.build_lora
    monkeypatch.setattr(install, "build_lora", lambda *a, **k: (made.append(1), original(*a, **k))[1])
    picture = sample(model)
    assert len(made) == 7
    assert not any(m.lora_spares for m in model.svdquant_layers().values())
    if dense.is_dynamic():
        return  # the host's own model fails with hooks on weights of two dtypes
    assert (picture - sample(dense)).norm() < rounding(5e-6) * picture.norm()
    assert torch.equal(sample_flux(model), plain)
