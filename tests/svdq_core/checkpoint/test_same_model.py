"""Whether a second file is of the model that was quantized: sizes of errors, cells of codes, names, what both have."""

import pytest
import torch
from checkpoint_files import write_tensors
from family_files import FamilyFile, minimax_h3

from svdquant_pack.svdq_core.apply_layer import dense_weight
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.checkpoint.dense_read import DenseModel
from svdquant_pack.svdq_core.checkpoint.same_model import DOUBTFUL, OTHER_MODEL, OUTSIDE, distance
from svdquant_pack.svdq_core.convert import convert
from svdquant_pack.svdq_core.errors import CheckpointError
from svdquant_pack.svdq_core.layer import Part, QuantizedLayer

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
STEP = 0.006 / 1.15  # of the files here, about


def quantized(scheme: str) -> tuple[QuantizedLayer, torch.Tensor]:
    """A layer rounded to the nearest, and the weight that it was made of."""
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(256, 128, generator=draw)
    group = 64 if scheme == "int4" else 16
    most = 7 if scheme == "int4" else 6
    scales = (weight.view(256, -1, group).abs().amax(-1) / most).bfloat16()
    if scheme == "nvfp4":
        scales = scales.float().to(torch.float8_e4m3fn)
    units = weight / scales.float().repeat_interleave(group, dim=1)
    if scheme == "int4":
        codes = units.round().clamp(-8, 7).to(torch.int16) & 15
    else:
        codes = (units.abs()[..., None] - E2M1).abs().argmin(-1) + 8 * (units < 0)
    tensors = {
        "qweight": (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8).view(torch.int8),
        "wscales": scales.view(torch.uint8 if scheme == "nvfp4" else torch.bfloat16).T.contiguous().view(scales.dtype),
        "smooth_factor": torch.ones(128, dtype=torch.bfloat16),
        "proj_down": torch.zeros(128, 16, dtype=torch.bfloat16),
        "proj_up": torch.zeros(256, 16, dtype=torch.bfloat16),
    }
    return QuantizedLayer(128, 256, (Part(scheme, (0, 256), (0, 128), False, tensors),)), weight


@pytest.mark.parametrize("scheme", ["int4", "nvfp4"])
def test_rounding_makes_the_error_that_it_says(scheme):
    layer, weight = quantized(scheme)
    found = distance(layer, weight)
    assert 0.8 < found.of_rounding < 1.15 and found.outside < OUTSIDE
    sibling = distance(layer, weight + 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    assert sibling.outside > 2 * OUTSIDE  # 5 % of the weight: told apart, although the size of the error hardly grows
    assert sibling.of_rounding < DOUBTFUL
    other = distance(layer, torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    assert other.of_rounding > OTHER_MODEL and other.relative > 1


def written(file: FamilyFile, folder, names=("h3.safetensors", "base.safetensors"), noise=0.0):
    """Both files; the second one's weights are off by some steps of the first one's codes."""
    draw = torch.Generator().manual_seed(6)
    base = dict(file.base)
    for host in file.weights:
        if noise:
            dense = torch.from_numpy(file.weights[host]).float()
            base[f"{host}.weight"] = (dense + noise * STEP * torch.randn(dense.shape, generator=draw)).bfloat16()
    return write_tensors(folder / names[0], file.tensors), write_tensors(folder / names[1], base)


def test_another_model_is_refused(tmp_path):
    first, second = written(minimax_h3("int4"), tmp_path, noise=2.0)
    with pytest.raises(CheckpointError, match=r"times what quantizing makes.*of two models"):
        read_checkpoint(Checkpoint(first, second))


def test_a_layer_in_the_middle_is_looked_at(tmp_path):
    """Siblings may have their first layers in common."""
    file = minimax_h3("int4")
    for index in (1, 2):
        for tensors in (file.base, file.tensors):
            again = {n.replace("blocks.0.", f"blocks.{index}."): t for n, t in tensors.items()}
            tensors |= {n: t.clone() for n, t in again.items() if n not in tensors and "refiner" not in n}
    name = "blocks.2.attn.out_proj.weight"
    file.base[name] = torch.randn_like(file.base[name])
    first, second = written(file, tmp_path)
    with pytest.raises(CheckpointError, match=r"blocks\.2\.attn\.out_proj\.weight is .* of two models"):
        read_checkpoint(Checkpoint(first, second))


def test_doubt_is_said(tmp_path, caplog):
    first, second = written(minimax_h3("int4"), tmp_path, noise=0.7)
    model = read_checkpoint(Checkpoint(first, second))
    (note,) = model.notes
    assert "they may be of two models that share all shapes" in note and note in caplog.text
    done = convert(first, tmp_path / "one.safetensors", "svdquant", base=second)
    assert done.notes[0] == note


FL2VA, REF2VA = "svdq-int4_r32-minimax-h3-fl2va.safetensors", "minimax_h3_ref2va_bf16.safetensors"


def test_names_that_contradict_each_other(tmp_path):
    file = minimax_h3("int4")
    with pytest.raises(CheckpointError, match=r"it is said to be ref2va, and .* to be fl2va"):
        read_checkpoint(Checkpoint(*written(file, tmp_path, (FL2VA, REF2VA), noise=0.3)))
    proven = read_checkpoint(Checkpoint(*written(file, tmp_path, (FL2VA, REF2VA))))  # a name may be wrong
    assert proven.notes == ()
    assert read_checkpoint(Checkpoint(*written(file, tmp_path, (FL2VA, FL2VA.replace("svdq-", "")), noise=0.3))).layers


def test_a_second_file_without_the_layers(tmp_path):
    file = minimax_h3("int4")
    for host in file.weights:
        del file.base[f"{host}.weight"]
    (note,) = read_checkpoint(Checkpoint(*written(file, tmp_path))).notes
    assert "whether both are of one model could not be checked" in note
    with pytest.raises(CheckpointError, match="it is said to be ref2va"):
        read_checkpoint(Checkpoint(*written(file, tmp_path, (FL2VA, REF2VA))))


def test_what_is_in_both_files_is_compared(tmp_path):
    """A norm beside the layers of the first file tells siblings apart where nothing else does."""
    file = minimax_h3("int4")
    norm = file.base["blocks.0.norm1.weight"]
    file.tensors["transformer_blocks.0.norm1.weight"] = norm.clone()
    assert read_checkpoint(Checkpoint(*written(file, tmp_path))).notes == ()
    file.tensors["transformer_blocks.0.norm1.weight"] = norm * 1.05
    with pytest.raises(CheckpointError, match=r"blocks\.0\.norm1\.weight differs from what h3"):
        read_checkpoint(Checkpoint(*written(file, tmp_path)))


def test_a_complete_reading_equals_the_truth(tmp_path):
    file = minimax_h3("int4")
    model = read_checkpoint(Checkpoint(*written(file, tmp_path)))
    host = "blocks.0.mlp.fc1"
    assert torch.allclose(dense_weight(model.layers[host]).double(), torch.from_numpy(file.weights[host]), atol=1e-6)


def test_who_wants_to_quantize_it_hears_which_16_bit_model_it_is(tmp_path):
    path = write_tensors(tmp_path / "h3.safetensors", minimax_h3("int4").tensors)
    with pytest.raises(CheckpointError, match=r"SVDQuant model already .*16-bit model, a 16-bit MiniMax H3 file"):
        DenseModel(Checkpoint(path))


def test_the_command_says_which_option_takes_it(tmp_path):
    path = write_tensors(tmp_path / "h3.safetensors", minimax_h3("int4").tensors)
    with pytest.raises(CheckpointError, match=r"second_file of Load Model \(SVDQuant\), or --base of the convert"):
        convert(path, tmp_path / "one.safetensors", "nunchaku")
