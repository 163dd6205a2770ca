"""The dialects that all families share: two-file folders, both spellings of tensors, Nunchaku Lite, dense files."""

import numpy as np
import pytest
import torch
from checkpoint_files import write_tensors
from family_files import FamilyFile, W, chroma, flux2, minimax_h3, qwen_image, sdxl
from nunchaku_packer import NEWER, Packer
from tiny_files import DATA

from svdquant_pack.svdq_core.apply_layer import dense_weight
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.checkpoint.container import LEGACY_FILES
from svdquant_pack.svdq_core.checkpoint.dense_read import DenseModel
from svdquant_pack.svdq_core.checkpoint.formats import FORMATS, quantized_format, save_model
from svdquant_pack.svdq_core.models import FLUX2, MINIMAX_H3
from svdquant_pack.svdq_core.quantize import QuantSpec
from svdquant_pack.svdq_core.quantize.layout_plan import plan_weights
from svdquant_pack.svdq_core.quantize.whole_model import quantize_model
from svdquant_pack.svdq_core.quantized_model import QuantizedModel

FIXTURES = ("zimage_nvfp4", "qwen_nvfp4", "krea2_int4")


def tensors_of(name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    checkpoint = Checkpoint(DATA / "families" / f"{name}.safetensors")
    return {key: checkpoint[key] for key in checkpoint}, checkpoint.metadata


def assert_same_weights(left: QuantizedModel, right: QuantizedModel) -> None:
    assert left.layers.keys() == right.layers.keys() and left.plain.keys() == right.plain.keys()
    assert [
        n for n in left.layers if not torch.equal(dense_weight(left.layers[n]), dense_weight(right.layers[n]))
    ] == []


def assert_truth(model: QuantizedModel, weights: dict[str, np.ndarray]) -> None:
    assert model.layers.keys() == weights.keys()
    for name, truth in weights.items():
        found = dense_weight(model.layers[name]).double().numpy()
        assert np.abs(found - truth).max() <= 1e-6 * np.abs(truth).max(), name


@pytest.mark.parametrize("name", FIXTURES)
def test_a_two_file_folder(name, tmp_path):
    tensors, metadata = tensors_of(name)
    whole = read_checkpoint(Checkpoint(DATA / "families" / f"{name}.safetensors"))
    quantized = {n.rpartition(".")[0] for n in tensors if n.endswith(".qweight")}
    blocks = {n: t for n, t in tensors.items() if n.rpartition(".")[0] in quantized or ".0.attn" in n}
    for file, part in zip(LEGACY_FILES, (blocks, {n: t for n, t in tensors.items() if n not in blocks}), strict=True):
        write_tensors(tmp_path / "folder" / file, part)
    (tmp_path / "folder" / "config.json").write_text(metadata["config"])
    assert_same_weights(read_checkpoint(Checkpoint(tmp_path / "folder")), whole)


@pytest.mark.parametrize("name", FIXTURES)
def test_older_names_of_tensors(name, tmp_path):
    tensors, metadata = tensors_of(name)
    older = {f".{new}": f".{old}" for old, new in NEWER.items()}
    renamed = {}
    for key, tensor in tensors.items():
        stem, _, end = key.rpartition(".")
        renamed[f"{stem}{older.get(f'.{end}', f'.{end}')}" if stem else key] = tensor
    path = write_tensors(tmp_path / "older.safetensors", renamed, metadata)
    assert any(key.endswith(".lora_down") for key in renamed)
    whole = read_checkpoint(Checkpoint(DATA / "families" / f"{name}.safetensors"))
    assert_same_weights(read_checkpoint(Checkpoint(path)), whole)


def lite(file: FamilyFile) -> dict[str, torch.Tensor]:
    """As diffusers' quantizer writes: newer names, no smooth_factor_orig."""
    return {name: tensor for name, tensor in file.tensors.items() if not name.endswith("_orig")}


def test_lite_flux2(tmp_path):
    """q, k and v apart, single blocks in one layer each, modulation outside the blocks as AWQ in plain order."""
    whole, file = flux2("int4"), FamilyFile(FLUX2, Packer("int4"))
    file.tensors = {n: t for n, t in whole.tensors.items() if "blocks." not in n or ".norm_" in n}
    for host, names, out, mlp in (
        ("img", ("to_q", "to_k", "to_v"), "to_out.0", "ff"),
        ("txt", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "ff_context"),
    ):
        block, source = f"double_blocks.0.{host}", "transformer_blocks.0"
        found = [file.add(f"{source}.attn.{n}", file.packer.layer(W, W, bias=False)) for n in names]
        file.host(f"{block}_attn.qkv", np.concatenate([packed.weight for packed in found]), None)
        file.whole(f"{block}_attn.proj", f"{source}.attn.{out}", W, bias=False)
        file.whole(f"{block}_mlp.0", f"{source}.{mlp}.linear_in", 6 * W, bias=False)
        file.whole(f"{block}_mlp.2", f"{source}.{mlp}.linear_out", W, 3 * W, bias=False)
    single = "single_transformer_blocks.0.attn"
    file.whole("single_blocks.0.linear1", f"{single}.to_qkv_mlp_proj", 9 * W, bias=False)
    file.whole("single_blocks.0.linear2", f"{single}.to_out", W, 4 * W, bias=False)
    for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"):
        rows = len(file.tensors.pop(f"{name}.linear.weight"))
        packed = file.add(f"{name}.linear", file.packer.modulation(rows, W, 1, bias=False))
        file.host(f"{name}.lin", packed.weight, None)
    model = read_checkpoint(Checkpoint(write_tensors(tmp_path / "lite.safetensors", lite(file))))
    assert_truth(model, file.weights)
    save_model(tmp_path / "own.safetensors", model, FORMATS["svdquant"](model.architecture))
    assert_same_weights(model, read_checkpoint(Checkpoint(tmp_path / "own.safetensors")))


def test_lite_minimax_h3(tmp_path):
    """q, k and v with smoothing and branches of their own; halves swapped, as in diffusers."""
    base, file = minimax_h3("nvfp4"), FamilyFile(MINIMAX_H3, Packer("nvfp4"))
    source, inner, mlp = "transformer_blocks.0", 2 * W, 3 * W
    found = [file.add(f"{source}.attn.to_{n}", file.packer.layer(inner, W, bias=False)) for n in "qkv"]
    file.host("blocks.0.attn.qkv_proj", np.concatenate([packed.weight for packed in found]), None)
    file.whole("blocks.0.attn.out_proj", f"{source}.attn.to_out.0", W, inner, bias=False)
    packed = file.add(f"{source}.ff.net.0.proj", file.packer.layer(2 * mlp, W, bias=False))
    file.host("blocks.0.mlp.fc1", np.concatenate([packed.weight[mlp:], packed.weight[:mlp]]), None)
    file.whole("blocks.0.mlp.fc2", f"{source}.ff.net.2", W, mlp, bias=False)
    for name, weight in file.weights.items():
        base.base[f"{name}.weight"] = torch.from_numpy(weight).bfloat16()
    path, second = tmp_path / "lite.safetensors", tmp_path / "base.safetensors"
    write_tensors(second, base.base)
    model = read_checkpoint(Checkpoint(write_tensors(path, lite(file)), second))
    assert_truth(model, file.weights)


@pytest.mark.parametrize(
    "make",
    [
        lambda: flux2("int4"),
        lambda: chroma("int4", tonera=False),
        lambda: qwen_image("int4"),
        lambda: sdxl("int4"),
        lambda: minimax_h3("int4"),
    ],
    ids=["flux2", "chroma", "qwen_image", "sdxl", "minimax_h3"],
)
def test_the_dense_model_is_quantized_again(make, tmp_path):
    """From ComfyUI's names to a file of our own making, which is close to the dense model."""
    file = make()
    path = write_tensors(tmp_path / "a.safetensors", file.tensors)
    base = write_tensors(tmp_path / "b.safetensors", file.base) if file.base else None
    model = read_checkpoint(Checkpoint(path, base))
    save_model(tmp_path / "dense.safetensors", model, FORMATS["bf16"](model.architecture))
    dense = DenseModel(Checkpoint(tmp_path / "dense.safetensors"))
    assert dense.ignored == []
    first = file.family.blocks[0].host if file.family.name == "sdxl" else ""
    few = {n: t for n, t in dense.items() if not first or n.startswith(first) or "blocks" not in n}
    spec = QuantSpec(rank=16)
    plan = plan_weights(dense.architecture, few)
    made, reports, kept = quantize_model(
        dense.architecture, plan, few, list(few), spec=spec, device=torch.device("cpu")
    )
    assert [text for text in kept if "as in files of" not in text] == []
    assert reports and made.layers.keys() == {n for n in model.layers if f"{n}.weight" in few}
    # a part of a model has no metadata that nunchaku's files want
    form = FORMATS["svdquant" if first else quantized_format(made.architecture, "int4")](made.architecture)
    save_model(tmp_path / "made.safetensors", made, form)
    if not first:
        again = read_checkpoint(Checkpoint(tmp_path / "made.safetensors"))
        assert_same_weights(made, again)
    for name, layer in made.layers.items():
        truth = dense[f"{name}.weight"].float()
        assert float((dense_weight(layer) - truth).norm() / truth.norm()) < 0.5, name
