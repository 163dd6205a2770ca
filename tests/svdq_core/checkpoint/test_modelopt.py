"""NVIDIA ModelOpt's NVFP4_SVD: diffusers' modules become ComfyUI's dense weights, with a branch behind smoothing."""

import pytest
import torch
from checkpoint_files import write_tensors
from family_files import qwen_image
from modelopt_files import quantized

from svdquant_pack.svdq_core.apply_layer import dense_bias, dense_weight
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.convert import convert
from svdquant_pack.svdq_core.errors import CheckpointError

W = 128
BLOCK = "transformer_blocks.0"
MODULATION = {"weight": (6 * W, W), "bias": (6 * W,)}


@pytest.fixture
def made():
    """A Qwen-Image: a branch on the image stream only, the text stream and modulation plain NVFP4."""
    file, draw = qwen_image("nvfp4", "plain"), torch.Generator().manual_seed(5)
    tensors = {n: t for n, t in file.tensors.items() if not n.startswith(f"{BLOCK}.") or ".norm_" in n}
    truth = {}
    for name in sorted({*file.weights, f"{BLOCK}.img_mod.1", f"{BLOCK}.txt_mod.1"}):
        rows, columns = file.weights[name].shape if name in file.weights else (6 * W, W)
        branch = "img_mlp" in name or (".attn.to_" in name and "add" not in name)
        layer, truth[name] = quantized(rows, columns, branch, draw)
        tensors |= {f"{name}.{end}": tensor for end, tensor in layer.items()}
    return tensors, truth


def test_every_module_becomes_its_dense_weight(made, tmp_path):
    tensors, truth = made
    model = read_checkpoint(Checkpoint(write_tensors(tmp_path / "m.safetensors", tensors)))
    assert model.layers.keys() == truth.keys() and model.precision == "nvfp4"
    for name, layer in model.layers.items():
        error = (dense_weight(layer) - truth[name]).norm() / truth[name].norm()
        assert float(error) < 4e-3, name  # the branch is rounded to bfloat16 with the smoothing in it
        assert torch.equal(dense_bias(layer).bfloat16(), tensors[f"{name}.bias"])
    assert {layer.parts[0].rank for layer in model.layers.values()} == {0, 16}


def test_layers_outside_the_blocks(made, tmp_path):
    tensors = dict(made[0])
    layer, truth = quantized(32, W, False, torch.Generator().manual_seed(8))
    tensors |= {f"proj_out.{end}": tensor for end, tensor in layer.items()}
    model = read_checkpoint(Checkpoint(write_tensors(tmp_path / "m.safetensors", tensors)))
    assert torch.allclose(dense_weight(model.layers["proj_out"]), truth, atol=1e-6)
    assert "proj_out.weight" not in model.plain and "img_in.weight" in model.plain


def test_a_branch_on_raw_activations_would_be_another(made):
    """Were the branch taken as nunchaku's, the weights would be off by far more than is allowed above."""
    tensors, truth = made
    name = f"{BLOCK}.attn.to_q"
    up, down = tensors[f"{name}.svdquant_lora_b"].float(), tensors[f"{name}.svdquant_lora_a"].float()
    raw = truth[name] - (up @ down) * tensors[f"{name}.pre_quant_scale"].float() + up @ down
    assert float((raw - truth[name]).norm() / truth[name].norm()) > 0.1


@pytest.mark.parametrize(
    ("end", "change", "sentence"),
    [
        ("weight", lambda t: t.view(torch.int8), "to_q.weight is int8"),
        ("weight_scale", lambda t: t.view(torch.uint8).T.contiguous(), "to_q.weight_scale is uint8 (8, 128)"),
        ("pre_quant_scale", torch.zeros_like, "expected 128 numbers other than 0"),
        ("svdquant_lora_a", lambda t: t[:4].contiguous(), "low-rank branch has shapes"),
    ],
)
def test_damage_is_named(made, end, change, sentence, tmp_path):
    tensors, name = made[0], f"{BLOCK}.attn.to_q.{end}"
    path = write_tensors(tmp_path / "m.safetensors", tensors | {name: change(tensors[name])})
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(Checkpoint(path))
    assert sentence in str(caught.value)


def test_a_module_without_its_scale_is_refused(made, tmp_path):
    tensors = {n: t for n, t in made[0].items() if n != f"{BLOCK}.attn.to_q.weight_scale_2"}
    with pytest.raises(CheckpointError, match=r"missing tensor: .*attn\.to_q\.weight_scale_2"):
        read_checkpoint(Checkpoint(write_tensors(tmp_path / "m.safetensors", tensors)))


def test_nothing_is_lost_on_the_way_through_nunchakus_layout(made, tmp_path):
    """What is rounded to bfloat16 there is kept beside it, of pieces, too, that are joined in that file."""
    keep = [f"{BLOCK}.{s}_mod.1" for s in ("img", "txt")]
    tensors = {n: t for n, t in made[0].items() if n.rpartition(".")[0] not in keep}
    tensors |= {f"{n}.{end}": torch.ones(*shape).bfloat16() for n in keep for end, shape in MODULATION.items()}
    for n in ("to_k", "to_v"):  # or one layer could not hold them
        tensors[f"{BLOCK}.attn.{n}.pre_quant_scale"] = tensors[f"{BLOCK}.attn.to_q.pre_quant_scale"].clone()
    source = write_tensors(tmp_path / "m.safetensors", tensors)
    convert(source, tmp_path / "n.safetensors", "nunchaku")
    before, after = read_checkpoint(Checkpoint(source)), read_checkpoint(Checkpoint(tmp_path / "n.safetensors"))
    for name, layer in before.layers.items():
        assert torch.equal(dense_weight(layer), dense_weight(after.layers[name])), name
