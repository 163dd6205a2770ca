"""Start and Save Calibration in the real host: every input seen, no picture changed, prompts adding up."""

import pytest
import torch
from host_models import put_lora, put_pixart
from recordings import SETTINGS, Witness, hooks_left, linears, save, start
from sampling import flux_conditioning, sample_flux, sample_pixart

from svdquant_pack.svdq_core.quantize.calibration_file import Calibration


@pytest.mark.parametrize("family", ["flux", "pixart"])
def test_recording_changes_no_picture_and_sees_every_input(host, folder, dense, family):
    sample = sample_flux
    if family == "pixart":
        dense, sample = host.call("UNETLoader", unet_name=put_pixart(folder), weight_dtype="default")[0], sample_pixart
    before = sample(dense)
    recording = start(host, dense, name=f"{family}/all")
    with Witness(dense) as witness:
        assert torch.equal(sample(recording), before)
    assert torch.equal(sample(dense), before) and hooks_left(dense) == 0
    calibration, report = save(host, recording)
    assert set(calibration) == set(linears(dense)) == set(witness.tokens)
    for name, found in calibration.items():
        assert found.count == witness.tokens[name]
        torch.testing.assert_close(found.mean_square, (witness.square[name] / found.count).float(), rtol=1e-4, atol=0)
        assert len(found.tokens) == min(found.count, SETTINGS["tokens"])
    # the last run was without recording: nothing more came in
    assert save(host, recording)[0].counts(name).to_list() == calibration.counts(name).to_list()
    assert "1 prompts" in report and "never seen" not in report and "left out" not in report


def test_correlations_are_recorded_within_the_budget(host, dense):
    recording = start(host, dense, name="hessians", gram_mib=64)
    with Witness(dense) as witness:
        sample_flux(recording)
    calibration, report = save(host, recording)
    hessians = {(n, span): hessian for n in calibration for span, hessian in calibration[n].hessians.items()}
    assert len(hessians) == 11  # ten layers of one part or with shared input, linear2 has two; modulations have none
    for (name, (a, b)), hessian in hessians.items():
        expected = (witness.outer[name][a:b, a:b] / witness.tokens[name]).float()
        torch.testing.assert_close(hessian, expected, rtol=1e-3, atol=1e-4 * float(expected.diagonal().mean()))
    assert "correlations of 10 layers" in report
    small = start(host, dense, name="few-hessians", gram_mib=1)
    sample_flux(small)
    calibration, _ = save(host, small)
    nbytes = sum(hessian.nbytes for name in calibration for hessian in calibration[name].hessians.values())
    assert 0 < nbytes <= 1 << 20


def test_prompts_add_up_and_another_take_starts_over(host, dense):
    recording = start(host, dense, name="sum")
    counts = []
    for _ in range(3):
        sample_flux(recording)
        calibration, report = save(host, recording)
        counts.append(calibration.counts("single_blocks.0.linear1").tokens)
        assert not list(calibration.path.parent.rglob("*.part"))
    assert counts == [counts[0], 2 * counts[0], 3 * counts[0]]
    assert "3 prompts, 12 steps at 4 times" in report
    again = start(host, dense, name="sum", take=2)
    sample_flux(again)
    calibration, report = save(host, again)
    assert calibration.counts("single_blocks.0.linear1").tokens == counts[0]
    assert "take 2: 1 prompts" in report


def test_the_same_prompts_give_the_same_file(host, dense):
    contents = []
    for take in (1, 2):
        recording = start(host, dense, name="same", take=take)
        sample_flux(recording)
        calibration, _ = save(host, recording)
        contents.append({name: calibration[name].tokens for name in calibration})
    assert all(torch.equal(contents[0][name], contents[1][name]) for name in contents[0])


def test_loras_are_seen_as_they_act(host, dense):
    (with_lora,) = host.call(
        "LoraLoaderModelOnly",
        model=dense,
        lora_name=put_lora(host.model_folder("loras")),
        strength_model=3.0,
    )
    found = {}
    for name, model in (("plain", dense), ("lora", with_lora)):
        recording = start(host, model, name=f"loras/{name}")
        sample_flux(recording)
        calibration, report = save(host, recording)
        found[name] = calibration["double_blocks.0.img_mlp.2"].mean_square
        assert ("LoRAs were on the model" in report) == (name == "lora")
    assert (found["lora"] - found["plain"]).norm() > 0.05 * found["plain"].norm()


def test_a_lora_behind_start_records_too(host, dense):
    recording = start(host, dense, name="behind")
    (with_lora,) = host.call(
        "LoraLoaderModelOnly",
        model=recording,
        lora_name=put_lora(host.model_folder("loras")),
        strength_model=1.0,
    )
    sample_flux(with_lora)
    assert len(save(host, with_lora)[0]) == len(linears(dense))


def test_batches_and_other_sizes_are_taken(host, dense):
    recording = start(host, dense, name="sizes")
    tokens = 0
    for pixels in (128, 64, 96):
        sample_flux(recording, pixels=pixels, steps=2)
        tokens += 2 * ((pixels // 16) ** 2 + 16)
    calibration, _ = save(host, recording)
    assert calibration.counts("single_blocks.0.linear1").tokens == tokens


def test_tokens_that_are_not_finite_are_said(host, dense):
    conditioning = flux_conditioning()
    conditioning[0][0][0, 3] = float("nan")
    recording = start(host, dense, name="nan")
    sample_flux(recording)
    sample_flux(recording, conditioning=conditioning, steps=1)
    calibration, report = save(host, recording)
    assert "tokens that were NaN or infinite" in report
    assert all(torch.isfinite(calibration[name].tokens).all() for name in calibration)


def test_few_times_are_said(host, dense):
    recording = start(host, dense, name="one-step")
    sample_flux(recording, steps=1)
    assert "few times" in save(host, recording)[1]


class Conditioning:
    """A node of this test: a prompt that needs no text encoder."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "make", "test"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802  the host's name
        return {"required": {}}

    def make(self):
        return (flux_conditioning(),)


def graph(name: str, seed: int, take: int = 1) -> dict:
    model, conditioning = {"unet_name": "dense-int4-float32.safetensors", "weight_dtype": "default"}, ["prompt", 0]
    sampling = {"steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0, "seed": seed}
    given = {"positive": conditioning, "negative": conditioning, "latent_image": ["latent", 0], "model": ["start", 0]}
    recording = SETTINGS | {"model": ["dense", 0], "name": name, "take": take}
    return {
        "dense": {"class_type": "UNETLoader", "inputs": model},
        "start": {"class_type": "SVDQuantCalibrationStart", "inputs": recording},
        "prompt": {"class_type": "TestConditioning", "inputs": {}},
        "latent": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "sample": {"class_type": "KSampler", "inputs": sampling | given},
        "save": {"class_type": "SVDQuantCalibrationSave", "inputs": {"model": ["start", 0], "samples": ["sample", 0]}},
    }


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "every node runs again"])
def test_queued_prompts_become_one_recording(host, dense, monkeypatch, cached):
    monkeypatch.setitem(host.nodes.NODE_CLASS_MAPPINGS, "TestConditioning", Conditioning)
    executor = host.executor() if cached else None
    name = f"queued/{cached}"
    for number in range(1, 4):
        shown = host.run(graph(name, seed=number), executor)["save"]["text"][0]
        assert f"take 1: {number} prompts, {2 * number} steps" in shown
    if cached:  # nothing new was drawn: nothing is recorded
        host.run(graph(name, seed=3), executor)
    path = host.output / "svdquant_calibration" / f"{name}.safetensors"
    assert Calibration(path).metadata["prompts"] == "3"
    assert "take 2: 1 prompts" in host.run(graph(name, seed=3, take=2), executor)["save"]["text"][0]
