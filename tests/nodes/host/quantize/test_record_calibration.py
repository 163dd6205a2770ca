"""Recordings in the host: which model they belong to, how they end and go on, what cannot be recorded."""

import gc

import comfy.model_management
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from families.models import load_dense
from host_models import put_dense, put_lora, put_tiny
from lora_files import diffusers_lora
from recordings import hooks_left, save, start
from sampling import flux_conditioning, sample, sample_flux

from svdquant_pack.nodes.host.quantize import record_calibration as calibration
from svdquant_pack.nodes.host.quantize.plan_patcher import plan_patcher
from svdquant_pack.svdq_core.errors import SVDQuantError


@pytest.fixture(scope="module")
def folder(host):
    return host.model_folder("diffusion_models")


def test_it_goes_on_after_a_restart(host, dense):
    recording = start(host, dense, name="evening")
    sample_flux(recording)
    before, _ = save(host, recording)
    expected = before.counts("single_blocks.0.linear1").tokens
    del recording
    gc.collect()
    assert "evening" not in calibration._alive  # what nobody holds takes no memory
    recording = start(host, dense, name="evening")
    sample_flux(recording)
    after, report = save(host, recording)
    assert after.counts("single_blocks.0.linear1").tokens == 2 * expected
    assert "2 prompts, 8 steps at 4 times" in report


def test_interruption_keeps_what_was_recorded(host, dense, monkeypatch):
    recording = start(host, dense, name="stopped")
    sample_flux(recording)
    before, _ = save(host, recording)
    kept = before.path.read_bytes()
    network, calls = dense.model.diffusion_model, []

    def cancel(module, args):
        calls.append(1)
        if len(calls) == 2:
            raise comfy.model_management.InterruptProcessingException()

    handle = network.single_blocks[0].register_forward_pre_hook(cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample_flux(recording)
    handle.remove()
    assert hooks_left(dense) == 0
    assert before.path.read_bytes() == kept
    sample_flux(recording)
    after, report = save(host, recording)
    assert "3 prompts" in report and "1 of the prompts were interrupted" in report
    assert after.counts("double_blocks.0.img_attn.qkv").calls == 4 + 2 + 4
    assert after.counts("single_blocks.0.linear1").calls == 4 + 1 + 4


def test_another_model_under_the_same_name_is_refused(host, folder, dense):
    recording = start(host, dense, name="whose")
    other = host.call("UNETLoader", unet_name=put_dense(folder, "nvfp4"), weight_dtype="default")[0]
    with pytest.raises(SVDQuantError, match=r"whose, take 1, was begun with another model.*another take"):
        start(host, other, name="whose")
    sample_flux(recording)
    save(host, recording)
    del recording
    gc.collect()
    with pytest.raises(SVDQuantError, match="begun with another model"):  # from its file
        start(host, other, name="whose")
    assert start(host, other, name="whose", take=2)


def test_a_model_that_is_patched_in_place_is_still_the_same(host, dense):
    recording = start(host, dense, name="in-place")
    lora = put_lora(host.model_folder("loras"))
    (with_lora,) = host.call("LoraLoaderModelOnly", model=dense, lora_name=lora, strength_model=1.0)
    sample_flux(with_lora)  # the host has patched the weights that both share
    assert start(host, dense, name="in-place").model is recording.model


def test_what_cannot_be_recorded_is_refused(host, folder, dense):
    quantized, _ = host.call("SVDQuantModelLoader", model_name=put_tiny(folder), compute="auto")
    with pytest.raises(SVDQuantError, match=r"SVDQuant model already.*full-precision"):
        start(host, quantized)
    with pytest.raises(SVDQuantError, match=r"does not record.*Start Calibration"):
        save(host, dense)
    with pytest.raises(SVDQuantError, match=r"nothing was recorded: the MODEL of Start Calibration did not run"):
        save(host, start(host, dense, name="never"))
    with pytest.raises(SVDQuantError, match="no file name inside"):
        start(host, dense, name="../escape")


def test_layers_that_never_ran_are_named(host, dense, monkeypatch):
    def skip(args, extra):
        return {"img": args["img"]}

    recording = start(host, dense, name="skipping")
    recording.set_model_patch_replace(skip, "dit", "single_block", 0)
    sample_flux(recording)
    file, report = save(host, recording)
    assert "never seen: 3 layers, single_blocks.0.linear1, single_blocks.0.linear2" in report
    assert "single_blocks.0.linear1" not in file


def test_a_compiled_model_is_recorded_as_well(host, dense):
    """Compiled code knows no hooks that come later; it is passed over while recording."""
    expected = sample_flux(dense)
    compiled = start(host, dense, name="compiled")
    set_torch_compile_wrapper(model=compiled, backend="eager")
    assert torch.equal(sample_flux(compiled), expected)
    file, _ = save(host, compiled)
    assert len(file) == 13 and file.counts("single_blocks.0.linear1").calls == 4
    before = dense.clone()
    set_torch_compile_wrapper(model=before, backend="eager")
    sample_flux(before)  # compiled before it records
    sample_flux(start(host, before, name="compiled"))
    assert save(host, compiled)[0].counts("single_blocks.0.linear1").calls == 8


def test_a_partly_loaded_model_with_a_lora_is_recorded(host, dense, add):
    """Layers whose weights the host brings, and patches, only while they run."""
    if dense.is_dynamic():
        pytest.skip("dynamic VRAM pages; it has no partial states")
    recording = add(start(host, dense, name="partly"), diffusers_lora(5), 1.0)
    text, extra = flux_conditioning()[0]
    recording.load(recording.load_device, lowvram_model_memory=300_000)
    try:
        offloaded = [m for m in recording.model.modules() if getattr(m, "weight_function", None)]
        assert recording.model.model_lowvram and offloaded
        with torch.inference_mode():
            recording.model.apply_model(
                torch.zeros(1, 16, 8, 8, device=recording.load_device),
                torch.tensor([0.5], device=recording.load_device),
                c_crossattn=text.to(recording.load_device),
                y=extra["pooled_output"].to(recording.load_device),
                guidance=torch.tensor([3.5], device=recording.load_device),
                transformer_options={"wrappers": recording.wrappers},
            )
    finally:
        recording.detach()
    file, _ = save(host, recording)
    assert len(file) == 13 and all(file.counts(name).calls == 1 for name in file)


def test_a_video_model_is_recorded(host):
    """Every layer of the plan, rows of both frames; the report says where they are too few."""
    dense = load_dense("wan_t2v")
    recording = start(host, dense, name="video")
    text = torch.randn(1, 12, 4096, generator=torch.Generator().manual_seed(0))
    sample(recording, (1, 16, 2, 16, 16), 2, [[text, {}]])
    found, report = save(host, recording)
    plan = plan_patcher(dense).plan
    assert set(found) == set(plan.names)
    assert {found.counts(layer.name).tokens for layer in plan.quantized} == {2 * 2 * 64}  # steps, frames, tokens
    assert "few rows:" in report and "record more prompts" in report
