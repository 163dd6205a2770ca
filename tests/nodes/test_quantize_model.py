"""Quantize Model: a file, a model from it, a report; and nothing left behind when it goes wrong."""

import shutil
from pathlib import Path

import comfy.model_management
import pytest
import torch
from host_models import put_dense, put_lora, put_pixart, put_tiny
from quantize_node import quantize
from safetensors.torch import load_file
from sampling import relative_error, sample_flux, sample_pixart

from svdquant_pack.svdq_core.errors import ArchitectureError, SVDQuantError


@pytest.fixture(scope="module")
def add_lora(host):
    """A copy of a model with the tiny LoRA."""
    name = put_lora(host.model_folder("loras"))
    return lambda model: host.call("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=3.0)[0]


def parts_left(host) -> list[Path]:
    return list((host.output / "diffusion_models").rglob("*.part"))


# 8-bit activations and weights of rank 16 on random weights: measured 0.027, 0.026 and 0.0041
@pytest.mark.parametrize(("precision", "limit"), [("int4", 0.05), ("nvfp4", 0.05), ("int8", 0.008)])
def test_quantize_save_reload(host, dense, precision, limit):
    model, path, report, plot = quantize(host, dense, precision=precision)
    name = Path(path).name
    assert name == f"svdq-{precision.removeprefix('nv')}_r16-mine.safetensors"
    picture = sample_flux(model)
    assert relative_error(picture, sample_flux(dense)) < limit
    again, status = host.call("SVDQuantModelLoader", model_name=name, compute="w4a8")
    assert torch.equal(sample_flux(again), picture)
    assert precision in status and "rank 16" in status
    assert name in report and "largest errors" in report
    assert plot.shape[-1] == 3 and plot.min() < 0.5 < plot.max()


def test_an_exported_copy_is_the_same_file(host, dense):
    model, path, _, _ = quantize(host, dense)
    (copy,) = host.call("SVDQuantExportModel", model=model, format="nunchaku", filename_prefix="copy", overwrite=True)
    first, second = load_file(path), load_file(copy)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n].view(torch.uint8), second[n].view(torch.uint8)) for n in first)


def test_int8_runs_as_w8a8_takes_loras_and_leaves_by_its_own_doors(host, dense, add_lora):
    model, path, _, _ = quantize(host, dense, precision="int8", activations="w4a4", rank=0)
    _, status = host.call("SVDQuantModelLoader", model_name=Path(path).name, compute="w4a4")
    assert "int8, no low-rank branch" in status and "compute w4a8" in status and "W8A8" in status
    assert relative_error(sample_flux(add_lora(model)), sample_flux(add_lora(dense))) < 0.012  # measured 0.0060
    for format in ("nunchaku", "comfy"):
        with pytest.raises(ArchitectureError, match=r"8-bit weights.*Write svdquant or bf16"):
            host.call("SVDQuantExportModel", model=model, format=format, filename_prefix="no", overwrite=True)
    (copy,) = host.call("SVDQuantExportModel", model=model, format="svdquant", filename_prefix="yes", overwrite=True)
    first, second = load_file(path), load_file(copy)
    assert first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_the_same_seed_writes_the_same_bytes(host, dense):
    path = Path(quantize(host, dense)[1])
    first = path.read_bytes()
    assert Path(quantize(host, dense)[1]).read_bytes() == first


def test_loras_on_the_model_are_baked_in(host, dense):
    lora = put_lora(host.model_folder("loras"))
    (with_lora,) = host.call("LoraLoaderModelOnly", model=dense, lora_name=lora, strength_model=3.0)
    model, _, report, _ = quantize(host, with_lora, filename_prefix="with-lora")
    assert "baked into" in report
    expected, without = sample_flux(with_lora), sample_flux(dense)
    assert relative_error(expected, without) > 0.2
    assert relative_error(sample_flux(model), expected) < 0.16


def test_pixart(host, folder):
    (dense,) = host.call("UNETLoader", unet_name=put_pixart(folder), weight_dtype="default")
    model, path, _, _ = quantize(host, dense, filename_prefix="pixart")
    picture = sample_pixart(model)
    assert relative_error(picture, sample_pixart(dense)) < 0.05  # measured 0.014
    again, status = host.call("SVDQuantModelLoader", model_name=Path(path).name, compute="w4a8")
    assert "PixArt" in status
    assert again.model.model_config.unet_config == dense.model.model_config.unet_config
    assert torch.equal(sample_pixart(again), picture)


def test_an_existing_file_is_kept_and_the_new_one_gets_a_number(host, dense):
    path = Path(quantize(host, dense, filename_prefix="numbered")[1])
    before = path.stat().st_mtime_ns
    again = Path(quantize(host, dense, filename_prefix="numbered", overwrite=False)[1])
    assert again == path.with_stem(f"{path.stem}_2") and again.is_file()
    assert path.stat().st_mtime_ns == before


def test_cancel_leaves_no_model(host, dense, monkeypatch):
    calls = []

    def cancelled():
        calls.append(1)
        if len(calls) > 3:
            raise comfy.model_management.InterruptProcessingException()

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", cancelled)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        quantize(host, dense, filename_prefix="cancelled")
    assert not list((host.output / "diffusion_models").glob("*cancelled*.safetensors"))
    assert not parts_left(host)


def test_a_full_disk_is_said_before_the_work(host, dense, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(SVDQuantError, match=r"GiB are needed and 0\.00 GiB are free"):
        quantize(host, dense, filename_prefix="full")
    assert not list((host.output / "diffusion_models").glob("*full*"))


def test_a_disk_that_fills_while_writing_leaves_what_was_there(host, dense, monkeypatch):
    from svdquant_pack.svdq_core.checkpoint import stream

    path = Path(quantize(host, dense, filename_prefix="kept")[1])
    before = path.read_bytes()

    def fails(file, block):
        file.write(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stream, "write_block", fails)
    with pytest.raises(SVDQuantError, match="No space left"):
        quantize(host, dense, filename_prefix="kept", seed=1)
    assert path.read_bytes() == before and not parts_left(host)


@pytest.mark.parametrize("name", ["../escape", "/absolute", "   "])
def test_a_name_that_leads_away_is_refused(host, dense, name):
    with pytest.raises(SVDQuantError, match="no file name inside"):
        host.call("SVDQuantExportModel", model=dense, format="nunchaku", filename_prefix=name, overwrite=True)


def test_a_quantized_source_is_refused(host, folder):
    model, _ = host.call("SVDQuantModelLoader", model_name=put_tiny(folder), compute="auto")
    with pytest.raises(SVDQuantError, match="already"):
        quantize(host, model)


def test_an_fp8_source_is_refused(host, folder):
    name = put_dense(folder, dtype=torch.bfloat16)
    (model,) = host.call("UNETLoader", unet_name=name, weight_dtype="fp8_e4m3fn")
    with pytest.raises(SVDQuantError, match=r"float8_e4m3fn.*BF16"):
        quantize(host, model)


def test_exporting_a_dense_model_is_refused(host, dense):
    with pytest.raises(SVDQuantError, match="no SVDQuant layers"):
        host.call("SVDQuantExportModel", model=dense, format="nunchaku", filename_prefix="dense", overwrite=True)
