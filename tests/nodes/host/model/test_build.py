"""What is worked out when a model is loaded: there and counted from the start, without effect on bits, in no file."""

import pytest
import torch
from comfy_extras import nodes_model_merging
from host_models import put_tiny
from lora_files import diffusers_lora
from model_compare import differences
from sampling import relative_error, rounding, sample_flux
from tiny_files import DATA

from svdquant_pack.nodes.host.model.build import load_model
from svdquant_pack.nodes.host.model.extract import extract_model
from svdquant_pack.nodes.host.model.quantized_linear import SVDQuantLinear
from svdquant_pack.svdq_core import fragment_order, runtime
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint, to_nunchaku


@pytest.fixture(params=["int4", "nvfp4"])
def pair(request, host, monkeypatch):
    """The same w4a8 model as it is loaded without kernels, and as it is loaded for a GPU with them."""
    path = host.model_folder("diffusion_models") / put_tiny(host.model_folder("diffusion_models"), request.param)
    monkeypatch.setattr(runtime, "why_no_triton", lambda device: "not in this test")
    usual = load_model(str(path), "w4a8")
    monkeypatch.setattr(runtime, "why_no_triton", lambda device: None)
    return usual, load_model(str(path), "w4a8")


def modules(model) -> list[SVDQuantLinear]:
    return list(model.svdquant_layers().values())


def test_what_is_worked_out_is_counted_and_changes_no_picture(pair):
    usual, prepared = pair
    for before, after in zip(modules(usual), modules(prepared), strict=True):
        assert not any("channel_scales" in part.tensors for part in before.layer().parts)
        for part in after.layer().parts:
            assert ("channel_scales" in part.tensors) == (part.scheme != "awq")
            assert part.scheme == "awq" or part["channel_scales"].shape == (part.out_features,)
        sizes = [t.nbytes for part in after.layer().parts for t in part.tensors.values()]
        assert after.weight.numel() == sum(-(-size // 256) * 256 for size in sizes)
    added = sum(b.weight.numel() - a.weight.numel() for a, b in zip(modules(usual), modules(prepared), strict=True))
    assert added and prepared.model_size() == usual.model_size() + added
    assert relative_error(sample_flux(prepared), sample_flux(usual)) < rounding(
        1e-3
    )  # sums of joined parts round otherwise


def test_parts_that_share_their_smoothing_are_one(pair):
    usual, prepared = (model.model.diffusion_model.single_blocks[0] for model in pair)
    scheme = usual.linear1.layer().parts[0].scheme
    assert [part.rows for part in usual.linear1.layer().parts] == [(0, 768), (768, 1792)]
    if scheme == "int4":  # nvfp4 has a scale for each whole tensor
        (part,) = prepared.linear1.layer().parts
        assert part.pieces == ((768, 32), (1024, 32)) and part.rank == 64
    assert len(prepared.linear2.layer().parts) == 2  # their inputs are not the same


@pytest.mark.parametrize("compute", ["w4a4", "w4a16"])
def test_other_modes_keep_nothing(host, monkeypatch, compute):
    monkeypatch.setattr(runtime, "why_no_triton", lambda device: None)
    model = load_model(str(DATA / "flux_tiny_int4_r32.safetensors"), compute)
    assert not any("channel_scales" in part.tensors for m in modules(model) for part in m.layer().parts)


def test_without_kernels_layers_are_as_they_were_read(host, monkeypatch):
    monkeypatch.setattr(runtime, "why_no_triton", lambda device: "not in this test")
    model = load_model(str(DATA / "flux_tiny_int4_r32.safetensors"), "w4a8")
    for module in modules(model):
        assert not any(part.pieces or "channel_scales" in part.tensors for part in module.layer().parts)


def saved_by_the_host(host, model, name: str) -> bytes:
    with torch.inference_mode():
        nodes_model_merging.ModelSave().save(model, f"diffusion_models/{name}")
    (path,) = (host.output / "diffusion_models").glob(f"{name}*.safetensors")
    data = path.read_bytes()
    path.unlink()
    return data


@pytest.fixture
def ordered_pair(host, monkeypatch):
    """The same w4a4 model with its codes in rows, and laid out for INT4 tensor cores."""
    path = host.model_folder("diffusion_models") / put_tiny(host.model_folder("diffusion_models"), "int4")
    monkeypatch.setattr(runtime, "why_no_triton", lambda device: None)
    usual = load_model(str(path), "w4a4")
    monkeypatch.setattr(fragment_order, "keeps_fragments", lambda scheme, *_: scheme == "int4")
    return usual, load_model(str(path), "w4a4")


def test_codes_laid_out_for_int4_tensor_cores_change_no_bit(host, ordered_pair, add):
    usual, ordered = ordered_pair
    laid_out = [m for m in modules(ordered) for part in m.layout.parts if part.slices["qweight"].dtype == "int32"]
    assert len(laid_out) > len(modules(ordered)) / 2
    assert ordered.model_size() == usual.model_size()
    assert torch.equal(sample_flux(ordered), sample_flux(usual))
    assert_same_files(host, usual, ordered)
    usual, ordered = (add(model, diffusers_lora(5)) for model in ordered_pair)
    assert torch.equal(sample_flux(ordered), sample_flux(usual))
    assert_same_files(host, usual, ordered)


@pytest.mark.parametrize("with_lora", [False, True])
def test_every_file_holds_the_same_bits(host, pair, add, with_lora):
    usual, prepared = (add(model, diffusers_lora(5)) for model in pair) if with_lora else pair
    assert_same_files(host, usual, prepared)


def assert_same_files(host, usual, prepared):
    paths = []
    for name, model in (("derived", prepared), ("usual", usual)):
        paths.append(host.output / "diffusion_models" / f"file-{name}.safetensors")
        paths[-1].write_bytes(saved_by_the_host(host, model, name))
    assert differences(*(read(path) for path in paths)) == []
    assert differences(extract_model(prepared), extract_model(usual)) == []
    files = [to_nunchaku(extract_model(model))[0] for model in (usual, prepared)]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][n].view(torch.uint8), files[1][n].view(torch.uint8)) for n in files[0])


def test_what_the_host_saves_is_prepared_anew(host, pair):
    _, prepared = pair
    path = host.output / "diffusion_models" / "prepared.safetensors"
    path.write_bytes(saved_by_the_host(host, prepared, "again"))
    assert not any("channel_scales" in p.tensors for x in read(path).layers.values() for p in x.parts)
    again = load_model(str(path), "w4a8")
    assert again.model_size() == prepared.model_size()
    # plain weights lie elsewhere: sums round otherwise, some codes flip
    assert relative_error(sample_flux(again), sample_flux(prepared)) < rounding(1e-2)


def read(path):
    return read_checkpoint(Checkpoint(path))
