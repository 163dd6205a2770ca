"""Files as publishers made them who kept to no single recipe: mixed layers, other ranks and dtypes, no metadata."""

import numpy as np
import pytest
import torch
from checkpoint_files import write_tensors
from family_asserts import assert_file
from family_files import FamilyFile, W, chroma, flux2, qwen_image
from family_modules import lite
from fused_files import krea2, zimage

from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint

BLOCK, NEXT = "transformer_blocks.0.", "transformer_blocks.1."


def read(file: FamilyFile, folder, name="x.safetensors"):
    return read_checkpoint(Checkpoint(write_tensors(folder / name, file.tensors)))


def with_second_block(first: FamilyFile, second: FamilyFile) -> FamilyFile:
    """The blocks of two files as one model."""
    for name in ("tensors", "weights", "biases", "plain"):
        found = getattr(second, name)
        getattr(first, name).update({n.replace(BLOCK, NEXT): t for n, t in found.items() if n.startswith(BLOCK)})
    return first


def halved(file: FamilyFile) -> FamilyFile:
    """Everything of 16 bits that belongs to no layer in float16."""
    layers = {name.removesuffix(".qweight") for name in file.tensors if name.endswith(".qweight")}
    for tensors in (file.tensors, file.plain):
        for name, tensor in tensors.items():
            if name.rpartition(".")[0] not in layers and tensor.dtype == torch.bfloat16:
                tensors[name] = tensor.half()
    return file


def test_modulation_of_three_kinds_in_one_qwen_image(tmp_path):
    """W4A4 in one block, AWQ in the next, and one of its layers plain; layered, without metadata."""
    file = halved(with_second_block(qwen_image("int4", "svdq"), qwen_image("int4", "awq")))
    name = f"{NEXT}txt_mod.1"
    for key in [key for key in file.tensors if key.startswith(f"{name}.")]:
        del file.tensors[key]
    del file.weights[name], file.biases[name]
    for end, shape in (("weight", (6 * W, W)), ("bias", (6 * W,))):
        file.tensors[f"{name}.{end}"] = file.plain[f"{name}.{end}"] = torch.ones(shape, dtype=torch.float16)
    layered = "time_text_embed.addition_t_embedding.weight"
    file.tensors[layered] = file.plain[layered] = torch.ones(2, W, dtype=torch.float16)
    model = read(file, tmp_path)
    assert_file(model, file)
    schemes = {host: layer.parts[0].scheme for host, layer in model.layers.items() if "_mod." in host}
    assert sorted(schemes.values()) == ["awq", "int4", "int4"]


@pytest.mark.parametrize(("precision", "rank", "skip"), [("int4", 112, True), ("nvfp4", 16, False)])
def test_z_image_of_other_ranks(precision, rank, skip, tmp_path):
    file = zimage(precision, rank, skip)
    assert ("noise_refiner.0.attention.qkv" in file.weights) is not skip
    assert_file(read(file, tmp_path), file)


def test_krea_2_of_rank_256(tmp_path):
    file = krea2("nvfp4", 256)
    model = read(file, tmp_path)
    assert_file(model, file)
    assert {layer.parts[0].rank for layer in model.layers.values()} == {256}


@pytest.mark.parametrize("tonera", [False, True], ids=["spooknik", "tonera"])
def test_chroma_with_layers_that_were_left_alone(tonera, tmp_path):
    file = halved(chroma("int4", tonera))
    name, host = "transformer_blocks.0.mlp_context_fc1", "double_blocks.0.txt_mlp.0"
    for key in [key for key in file.tensors if key.startswith(f"{name}.")]:
        del file.tensors[key]
    del file.weights[host], file.biases[host]
    for end, shape in (("weight", (4 * W, W)), ("bias", (4 * W,))):
        file.tensors[f"{name}.{end}"] = file.plain[f"{host}.{end}"] = torch.ones(shape, dtype=torch.float16)
    assert_file(read(file, tmp_path), file)


@pytest.mark.parametrize(("double", "single"), [(2, 1), (1, 3)], ids=["4B", "9B"])
def test_klein_with_more_blocks(double, single, tmp_path):
    """The sizes differ in width and numbers of blocks, which the file tells."""
    file = flux2("nvfp4")
    kinds = {("transformer_blocks", "double_blocks"): double, ("single_transformer_blocks", "single_blocks"): single}
    for (source, host), count in kinds.items():
        for index in range(1, count):
            again = flux2("nvfp4")
            for tensors, prefix in (
                (again.tensors, source),
                (again.plain, host),
                (again.weights, host),
                (again.biases, host),
            ):
                name = next(k for k in ("tensors", "plain", "weights", "biases") if getattr(again, k) is tensors)
                moved = {
                    n.replace(".0.", f".{index}.", 1): t for n, t in tensors.items() if n.startswith(f"{prefix}.0.")
                }
                getattr(file, name).update(moved)
    assert_file(read(file, tmp_path), file)


def test_lite_with_one_linear_in_16_bits(tmp_path):
    file = lite("zimage", "int4", rank=80)
    host = "layers.0.feed_forward.w2"
    for key in [key for key in file.tensors if key.startswith(f"{host}.")]:
        del file.tensors[key]
    weight = torch.from_numpy(np.ascontiguousarray(file.weights.pop(host))).half()
    del file.biases[host]
    file.tensors[f"{host}.weight"] = file.plain[f"{host}.weight"] = weight
    assert_file(read(file, tmp_path), file)


def test_edit_2511_by_its_name_alone(tmp_path):
    """Its structure is that of 2509; ComfyUI wants an empty tensor that no file has."""
    model = read(qwen_image("nvfp4", "svdq"), tmp_path, "nunchaku_qwen_image_edit_2511_balance_fp4.safetensors")
    assert model.plain["__index_timestep_zero__"].numel() == 0


def test_flux_2_dev_has_guidance(tmp_path):
    file = flux2("int4")
    for number, shape in ((1, (W, 256)), (2, (W, W))):
        name, host = f"guidance_embedder.linear_{number}", f"guidance_in.{'in' if number == 1 else 'out'}_layer"
        tensor = torch.full(shape, 0.5 / number, dtype=torch.bfloat16)
        file.tensors[f"time_guidance_embed.{name}.weight"] = file.plain[f"{host}.weight"] = tensor
    assert_file(read(file, tmp_path), file)
