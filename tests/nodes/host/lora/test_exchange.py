"""Other LoRAs on a loaded model: the host's loader does not run, and every weight has the right value."""

import pytest
import torch
from lora_files import adapter_file, control_lora, diffusers_lora, host_lora
from network_runs import NetworkRun
from sampling import relative_error, rounding, sample_flux

# float32 on the CPU: sums in another order
ORDER = rounding(5e-6)


@pytest.fixture
def loads(model, monkeypatch):
    """A list that grows with every run of the host's loader."""
    calls, original = [], type(model).load
    monkeypatch.setattr(type(model), "load", lambda self, *a, **k: (calls.append(1), original(self, *a, **k))[1])
    return calls


def widening(seed: int) -> dict:
    import comfy.lora_convert

    return comfy.lora_convert.convert_lora(control_lora(seed))


def test_a_card_without_room_for_the_factors(model, plain, add, monkeypatch):
    """Layers leave before the factors come: at no moment is there more on the card than the host allowed."""
    if model.is_dynamic():
        pytest.skip("dynamic VRAM pages; nothing has to leave first")
    from svdquant_pack.nodes.host.lora import exchange

    model.detach()
    ours = add(add(model, diffusers_lora(5)), diffusers_lora(6))
    ours.patch_model(model.load_device)
    expected = NetworkRun(model)()
    ours.detach()
    model.patch_model(model.load_device)
    base, allowed = model.loaded_size(), (ours.model_size() - model.model_size()) // 4
    seen, install = [], exchange.install
    monkeypatch.setattr(
        exchange,
        "install",
        lambda *given: (seen.append(ours.loaded_size()), install(*given), seen.append(ours.loaded_size())),
    )
    ours.partially_load(model.load_device, allowed)
    assert seen and max(*seen, ours.loaded_size()) <= base + allowed
    assert ours.loaded_size() > base * 0.5  # what fits has come back
    assert torch.equal(NetworkRun(model)(), expected)
    ours.detach()
    assert torch.equal(sample_flux(model), plain)


def norms_and_biases(seed: int) -> dict:
    lora = adapter_file("difference", seed)
    lora["diffusion_model.double_blocks.0.img_attn.norm.query_norm.set_weight"] = torch.rand(128) + 0.5
    return lora


def test_changes_of_all_kinds(model, dense, plain, add, loads):
    sample_flux(model)
    loads.clear()
    files = [norms_and_biases(3), adapter_file("LoHa", 30), widening(4), host_lora(5), diffusers_lora(6)]
    ours = [add(model, lora, 0.5) for lora in files] + [add(add(model, files[0]), files[3], -0.2), model]
    expected = [add(dense, lora, 0.5) for lora in files] + [add(add(dense, files[0]), files[3], -0.2), dense]
    for patched, same in zip(ours, expected, strict=True):
        assert relative_error(sample_flux(patched), sample_flux(same)) < ORDER
    assert not loads or model.is_dynamic()  # whose loader always runs, and moves nothing that stays
    assert torch.equal(sample_flux(model), plain)


def test_a_partly_loaded_model(model, dense, plain, add, loads):
    """Layers that the host keeps on the CPU patch themselves in every step; they must learn of the change as well."""
    if model.is_dynamic():
        pytest.skip("dynamic VRAM pages; it has no partial states")
    model.detach()
    dense.detach()
    files = norms_and_biases(3), norms_and_biases(8)
    first, second = add(model, files[0], 0.5), add(model, files[1], 0.7)
    device = model.load_device
    first.patch_model(device, lowvram_model_memory=int(first.model_size() * 0.5))
    loads.clear()
    for patched, lora, strength in ((second, files[1], 0.7), (first, files[0], 0.5)):
        patched.partially_load(device, 1.0)
        patched_output = NetworkRun(model)()
        whole = add(dense, lora, strength)
        whole.patch_model(device)
        assert relative_error(patched_output, NetworkRun(whole)()) < ORDER
        whole.unpatch_model(device)
    first.unpatch_model(model.offload_device)
    assert torch.equal(sample_flux(model), plain)


def test_a_wrapper_on_an_unquantized_weight_goes_the_hosts_way(model, dense, plain, add):
    key = "diffusion_model.final_layer.linear.weight"
    ours, expected = add(model, host_lora(5)), add(dense, host_lora(5))
    sample_flux(ours)
    for patched in (ours, expected):
        patched.add_weight_wrapper(key, lambda weight: weight * 1.5)
    assert relative_error(sample_flux(ours), sample_flux(expected)) < rounding(5e-6)
    assert torch.equal(sample_flux(model), plain)
