"""Export Model (SVDQuant): every format loads again with the same picture, and every kind of file is in the list."""

import shutil
from pathlib import Path

import comfy.model_management
import pytest
import torch
from checkpoint_files import TINY, write_legacy_folder
from comfy_files import ComfyFile
from host_models import put_lora, put_tiny
from lite_folders import lite_tensors, write_lite
from model_compare import differences
from native_folders import flux_folder, write_native
from safetensors.torch import load_file
from sampling import relative_error, sample_flux

from svdquant_pack.nodes.host.model.extract import extract_model
from svdquant_pack.svdq_core.errors import ArchitectureError, SVDQuantError


@pytest.fixture(scope="module")
def folder(host):
    return host.model_folder("diffusion_models")


def load(host, name, compute="w4a16"):
    return host.call("SVDQuantModelLoader", model_name=name, compute=compute)


def export(host, model, format, name, overwrite=True):
    (path,) = host.call("SVDQuantExportModel", model=model, format=format, filename_prefix=name, overwrite=overwrite)
    return Path(path)


@pytest.mark.parametrize(("precision", "format"), [("int4", "nunchaku"), ("int4", "comfy"), ("nvfp4", "nunchaku")])
def test_an_exported_file_loads_with_the_same_picture(host, folder, precision, format):
    model, _ = load(host, put_tiny(folder, precision), "w4a4")
    path = export(host, model, format, f"exported-{precision}-{format}")
    again, status = load(host, path.name, "w4a4")
    assert precision in status
    assert torch.equal(sample_flux(again), sample_flux(model))


def test_bf16_loads_with_the_stock_loader(host, folder):
    model, _ = load(host, put_tiny(folder))
    path = export(host, model, "bf16", "exported-dense")
    (dense,) = host.call("UNETLoader", unet_name=path.name, weight_dtype="default")
    # weights rounded to bfloat16: 0.4 % each, over 4 steps
    assert relative_error(sample_flux(dense), sample_flux(model)) < 0.02


def test_a_lora_goes_into_the_dense_model(host, folder):
    model, _ = load(host, put_tiny(folder))
    (patched,) = host.call(
        "LoraLoaderModelOnly", model=model, lora_name=put_lora(host.model_folder("loras")), strength_model=2.0
    )
    path = export(host, patched, "bf16", "exported-dense-lora")
    (dense,) = host.call("UNETLoader", unet_name=path.name, weight_dtype="default")
    assert relative_error(sample_flux(dense), sample_flux(patched)) < 0.03
    assert relative_error(sample_flux(dense), sample_flux(model)) > 0.05


def test_what_a_format_cannot_hold_is_said_and_nothing_is_written(host, folder):
    model, _ = load(host, put_tiny(folder, "nvfp4"))
    with pytest.raises(ArchitectureError, match="is NVFP4, and the comfy-native SVDQuant format holds 4-bit integers"):
        export(host, model, "comfy", "impossible")
    assert not list((host.output / "diffusion_models").glob("impossible*"))


def test_an_existing_file_is_kept_and_the_new_one_gets_a_number(host, folder):
    model, _ = load(host, put_tiny(folder))
    path = export(host, model, "nunchaku", "kept")
    before = path.read_bytes()
    for number in (2, 3):
        assert export(host, model, "bf16", "kept", overwrite=False) == path.with_name(f"kept_{number}.safetensors")
    assert path.read_bytes() == before


def test_cancelling_leaves_nothing(host, folder, monkeypatch):
    model, _ = load(host, put_tiny(folder))
    calls = []

    def cancelled():
        calls.append(1)
        if len(calls) > 5:
            raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", cancelled)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        export(host, model, "nunchaku", "export-cancelled")
    assert not list((host.output / "diffusion_models").rglob("*export-cancelled*"))


@pytest.mark.parametrize("name", ["../out", "a/../../out", "", "  "])
def test_a_name_that_leads_out_is_refused(host, folder, name):
    model, _ = load(host, put_tiny(folder))
    with pytest.raises(SVDQuantError, match="is no file name inside"):
        export(host, model, "nunchaku", name)


def test_every_kind_of_folder_is_one_entry_of_the_list(host, folder):
    from svdquant_pack.nodes.host.files import list_models

    write_legacy_folder(folder / "kinds" / "legacy")
    write_native(folder / "kinds" / "deepcompressor", flux_folder())
    write_lite(folder / "kinds" / "shards", lite_tensors(), shards=2)
    write_lite(folder / "kinds" / "lite", lite_tensors())
    ComfyFile("pixart").write(folder / "kinds" / "comfy.safetensors")
    shutil.copy(TINY["int4"], folder / "kinds" / "other.sft")
    (folder / "kinds" / "notes.pt").write_bytes(b"")
    found = {Path(name).as_posix() for name in list_models() if "kinds" in name}
    assert found == {
        "kinds/legacy",
        "kinds/deepcompressor",
        "kinds/shards",
        "kinds/lite/diffusion_pytorch_model.safetensors",
        "kinds/comfy.safetensors",
        "kinds/other.sft",
    }
    expected = sample_flux(load(host, put_tiny(folder))[0])
    for name in ("kinds/legacy", "kinds/other.sft"):
        assert torch.equal(sample_flux(load(host, name)[0]), expected)
    # the biases of its modulation have not been rounded
    assert relative_error(sample_flux(load(host, "kinds/deepcompressor")[0]), expected) < 0.02
    for name in ("kinds/shards", "kinds/lite/diffusion_pytorch_model.safetensors"):
        assert bool(torch.isfinite(sample_flux(load(host, name)[0])).all())


def test_replacing_a_shard_changes_the_fingerprint(host, folder):
    from svdquant_pack.nodes.load_model import SVDQuantModelLoader

    place = write_lite(folder / "changing", lite_tensors(), shards=2)
    before = SVDQuantModelLoader.fingerprint_inputs("changing", "w4a4")
    assert before == SVDQuantModelLoader.fingerprint_inputs("changing", "w4a4")
    shard = place / "diffusion_pytorch_model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes() + b" ")
    assert SVDQuantModelLoader.fingerprint_inputs("changing", "w4a4") != before


def test_pixart_comes_back_from_every_format(host, folder):
    """Exported as nunchaku and as comfy-native, loaded again: the same model, bit for bit."""
    file = ComfyFile("pixart", width=1152, text=4096)  # the host knows this width only
    file.tensors["pos_embed"] = torch.zeros(1, 64 * 64, 1)
    file.write(folder / "random-pixart.safetensors")
    model, status = load(host, "random-pixart.safetensors")
    assert "PixArt" in status
    expected = extract_model(model)
    for format in ("nunchaku", "comfy"):
        path = export(host, model, format, f"pixart-{format}")
        found = differences(extract_model(load(host, path.name)[0]), expected)
        assert [text for text in found if "smooth_factor_orig" not in text] == []  # not written where it says nothing
    assert any(name.endswith(".comfy_quant") for name in load_file(path))
