"""Load Model (SVDQuant): the host's own classes, the right pictures, and one clear sentence for every wrong file."""

import json
import shutil
import struct

import pytest
import torch
from host_models import put_dense, put_tiny
from safetensors.torch import load_file, save_file
from sampling import relative_error, rounding, sample_flux
from tiny_files import DATA

from svdquant_pack.svdq_core.errors import CheckpointError


@pytest.fixture(scope="module")
def folder(host):
    return host.model_folder("diffusion_models")


def load(host, name, compute="w4a16"):
    return host.call("SVDQuantModelLoader", model_name=name, compute=compute)


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_equals_the_hosts_own_model_of_the_same_weights(host, folder, precision):
    (dense,) = host.call("UNETLoader", unet_name=put_dense(folder, precision), weight_dtype="default")
    expected = sample_flux(dense)
    model, status = load(host, put_tiny(folder, precision))
    assert type(model.model) is type(dense.model)
    assert precision in status and "FLUX.1" in status
    # both in float32 on the CPU, the same weights: what differs is the order of the sums, over 4 steps
    assert relative_error(sample_flux(model), expected) < rounding(2e-6)
    # 8-bit activations add 0.5 % here, 4-bit ones 4 to 5 %: measured 0.0050 and 0.0435 for int4
    assert relative_error(sample_flux(load(host, put_tiny(folder, precision), "w4a8")[0]), expected) < 0.015
    exact = relative_error(sample_flux(load(host, put_tiny(folder, precision), "w4a4")[0]), expected)
    assert 0.01 < exact < 0.10


def test_the_same_twice(host, folder):
    model, _ = load(host, put_tiny(folder), "auto")
    first = sample_flux(model)
    assert torch.equal(sample_flux(model), first)
    assert torch.equal(sample_flux(load(host, put_tiny(folder), "auto")[0]), first)


def test_legacy_folder_equals_the_single_file(host, folder):
    legacy = folder / "svdq-legacy"
    legacy.mkdir(exist_ok=True)
    tensors = load_file(DATA / "flux_tiny_int4_r32.safetensors")
    blocks = {n: t for n, t in tensors.items() if "transformer_blocks." in n}
    save_file(blocks, legacy / "transformer_blocks.safetensors")
    rest = {n: t for n, t in tensors.items() if n not in blocks}
    save_file(rest, legacy / "unquantized_layers.safetensors")
    for name in ("config.json", "comfy_config.json"):
        shutil.copy(DATA / "legacy_folder_int4" / name, legacy / name)
    expected = sample_flux(load(host, put_tiny(folder))[0])
    assert torch.equal(sample_flux(load(host, "svdq-legacy")[0]), expected)


def test_the_list_shows_files_and_folders(host, folder):
    put_tiny(folder)
    (folder / "svdq-old").mkdir(exist_ok=True)
    for name in ("transformer_blocks", "unquantized_layers"):
        save_file({"a": torch.zeros(1)}, folder / "svdq-old" / f"{name}.safetensors")
    inputs = host.nodes.NODE_CLASS_MAPPINGS["SVDQuantModelLoader"].INPUT_TYPES()["required"]
    options = inputs["model_name"][1]["options"]
    assert "svdq-int4-tiny.safetensors" in options and "svdq-old" in options
    assert not any("transformer_blocks" in option for option in options)
    shutil.rmtree(folder / "svdq-old")


QKV = "transformer_blocks.0.qkv_proj"


def _truncated(path):
    data = (DATA / "flux_tiny_int4_r32.safetensors").read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _huge_header(path):
    path.write_bytes(struct.pack("<Q", 10**15) + b"{}" + bytes(64))


def _changed(change):
    def write(path):
        tensors = load_file(DATA / "flux_tiny_int4_r32.safetensors")
        change(tensors)
        save_file(tensors, path)

    return write


def _nan_scale(tensors):
    tensors[f"{QKV}.wscales"][0, 5] = float("nan")


def _without_qkv(tensors):
    for name in list(tensors):
        if name.startswith(f"{QKV}."):
            del tensors[name]


def _t5(tensors):
    tensors.clear()
    tensors["encoder.block.0.layer.0.SelfAttention.q.qweight"] = torch.zeros(4, 4, dtype=torch.int16)


FIRST_BLOCK_SCALES = torch.ones(3, 768, dtype=torch.bfloat16)  # the layer has 4 groups
WRONG_FILES = {
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "truncated": (_truncated, "cut off|incomplete"),
    "header of a petabyte": (_huge_header, "1000000000000000"),
    "GGUF": (lambda path: path.write_bytes(b"GGUF" + bytes(100)), "GGUF"),
    "pickle": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), "pickle"),
    "text": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "not a safetensors file"),
    "plain bf16": (lambda path: save_file({"a.weight": torch.zeros(2, 2).bfloat16()}, path), "no SVDQuant layers"),
    "fp8": (lambda path: save_file({"a.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn)}, path), "layers .F8_E4M3"),
    "4-bit T5": (_changed(_t5), "text encoder"),
    "missing tensor": (_changed(lambda t: t.pop(f"{QKV}.smooth")), "smooth_factor is missing"),
    "missing layer": (_changed(_without_qkv), f"missing.*{QKV}"),
    "extra tensor": (_changed(lambda t: t.update({"odd.weight": torch.zeros(1)})), r"unexpected.*odd\.weight"),
    "wrong shape": (_changed(lambda t: t.update({f"{QKV}.wscales": FIRST_BLOCK_SCALES})), "wscales"),
    "wrong dtype": (_changed(lambda t: t.update({f"{QKV}.smooth": t[f"{QKV}.smooth"].int()})), "int32"),
    "NaN scale": (_changed(_nan_scale), f"{QKV}.*wscales holds NaN"),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_a_wrong_file_is_one_clear_sentence(host, folder, kind):
    write, words = WRONG_FILES[kind]
    path = folder / "wrong.safetensors"
    write(path)
    try:
        with pytest.raises(CheckpointError, match=words) as error:
            load(host, "wrong.safetensors")
        assert "wrong.safetensors" in str(error.value)
    finally:
        path.unlink()
    assert sample_flux(load(host, put_tiny(folder))[0]).isfinite().all()  # the host goes on


def test_a_file_of_other_sizes_names_both(host, folder):
    """linear2 of another width than the model around it."""
    tensors = load_file(DATA / "flux_tiny_int4_r32.safetensors")
    narrow = {n: t for n, t in tensors.items() if n.startswith("transformer_blocks.0.mlp_fc1.")}
    for name in narrow:
        tensors[name] = tensors[name.replace("mlp_fc1", "qkv_proj")].clone()
    save_file(tensors, folder / "mixed.safetensors", {"config": json.dumps({})})
    with pytest.raises(Exception, match=r"256 inputs and 768 outputs.*256 and 1024"):
        load(host, "mixed.safetensors")
    (folder / "mixed.safetensors").unlink()


def test_a_folder_without_its_two_files(host, folder):
    (folder / "half").mkdir(exist_ok=True)
    save_file({"a": torch.zeros(1)}, folder / "half" / "transformer_blocks.safetensors")
    with pytest.raises(CheckpointError, match=r"unquantized_layers\.safetensors is missing"):
        load(host, "half")
    shutil.rmtree(folder / "half")
