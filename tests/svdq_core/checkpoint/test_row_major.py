"""vLLM-Omni's files, made of nunchaku's as its converters do: both versions, and what happens if one is misread."""

import json

import pytest
import torch
from checkpoint_files import write_tensors
from family_files import minimax_h3, qwen_image
from tiny_files import DATA

from svdquant_pack.svdq_core import layouts
from svdquant_pack.svdq_core.apply_layer import dense_weight
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.errors import CheckpointError

CONFIG = {"quant_method": "svdquant", "rank": 16, "precision": "nvfp4", "act_unsigned": False}
ZIMAGE = DATA / "families" / "zimage_nvfp4.safetensors"


def converted(tensors: dict[str, torch.Tensor], swapped: str, natural_vectors: bool) -> dict[str, torch.Tensor]:
    """Plain order; row halves exchanged where a layer's name ends so; channel scales of one where there are none."""
    layers = {name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")}
    found = {name: t for name, t in tensors.items() if name.rpartition(".")[0] not in layers}
    for layer in layers:
        stored = {n: tensors[f"{layer}.{n}"] for n in layouts.NUNCHAKU if f"{layer}.{n}" in tensors}
        stored.pop("smooth_factor_orig", None)
        rows, half = stored["qweight"].shape[0], stored["qweight"].shape[0] // 2
        stored.setdefault("wcscales", torch.ones(rows).bfloat16())
        stored.setdefault("wtscale", torch.ones(1).bfloat16())
        vectors = () if natural_vectors else ("smooth_factor", "wcscales", "bias")
        plain = {n: t if n in vectors else layouts.NUNCHAKU[n].from_stored(t) for n, t in stored.items()}
        plain["qweight"] = plain["qweight"].view(torch.uint8)
        if layer.endswith(swapped):
            for name, dim in (("qweight", 0), ("wscales", 1), ("proj_up", 0), ("wcscales", 0), ("bias", 0)):
                if name in plain:
                    raw = plain[name].view(torch.uint8) if plain[name].element_size() == 1 else plain[name]
                    moved = torch.cat([raw.narrow(dim, half, half), raw.narrow(dim, 0, half)], dim)
                    plain[name] = moved.view(plain[name].dtype)
        found |= {f"{layer}.{n}": t for n, t in plain.items()}
    return found


def write_folder(folder, tensors, config, conversion):
    inner = folder / "transformer"
    metadata = {} if conversion is None else {"conversion": json.dumps(conversion)}
    write_tensors(inner / "diffusion_pytorch_model.safetensors", tensors, metadata)
    (inner / "config.json").write_text(json.dumps({"quantization_config": config} if config else {}))
    return folder


def h3_folder(tmp_path, config=CONFIG, conversion=None):
    file = minimax_h3("nvfp4", host_named=True)
    rest = {n: t for n, t in file.base.items() if n.rpartition(".")[0] not in file.weights}
    return file, write_folder(tmp_path / "h3", converted(file.tensors | rest, ".mlp.fc1", True), config, conversion)


def zimage_tensors():
    checkpoint = Checkpoint(ZIMAGE)
    tensors = converted({name: checkpoint[name] for name in checkpoint}, ".feed_forward.net.0.proj", False)
    names = {".feed_forward.net.0.proj.": ".feed_forward.w13.", ".feed_forward.net.2.": ".feed_forward.w2."}
    for old, new in names.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors


def test_the_second_version_is_read(tmp_path):
    file, folder = h3_folder(tmp_path, conversion={"layout": "row_major", "model_family": "minimax_h3"})
    model = read_checkpoint(Checkpoint(folder))
    assert model.layers.keys() == file.weights.keys()
    for name, layer in model.layers.items():
        truth = torch.from_numpy(file.weights[name])
        assert float((dense_weight(layer) - truth).abs().max() / truth.abs().max()) < 1e-6, name


@pytest.mark.parametrize("mark", ["config", "metadata"])
def test_one_mark_is_enough(mark, tmp_path):
    config = CONFIG if mark == "config" else None
    conversion = {"layout": "row_major"} if mark == "metadata" else None
    file, folder = h3_folder(tmp_path, config, conversion)
    assert len(read_checkpoint(Checkpoint(folder)).layers) == len(file.weights)


def test_the_first_version_is_read(tmp_path):
    config = {"model": None, "default": CONFIG}
    folder = write_folder(tmp_path / "z", zimage_tensors(), config, {"layout": "row_major"})
    model, truth = read_checkpoint(Checkpoint(folder)), read_checkpoint(Checkpoint(ZIMAGE))
    assert model.layers.keys() == truth.layers.keys()
    for name, layer in truth.layers.items():
        assert torch.equal(dense_weight(model.layers[name]), dense_weight(layer)), name


def test_without_a_mark_it_is_not_read_as_tiles(tmp_path):
    """Its codes are uint8, and nunchaku's are int8."""
    _, folder = h3_folder(tmp_path, config=None)
    with pytest.raises(CheckpointError, match="qweight is uint8"):
        read_checkpoint(Checkpoint(folder))


def test_an_order_that_nothing_tells_is_not_guessed(tmp_path):
    tensors = converted(qwen_image("nvfp4", "plain").tensors, ".none", True)
    folder = write_folder(tmp_path / "q", tensors, CONFIG, None)
    with pytest.raises(CheckpointError, match="nothing says which version of its converter"):
        read_checkpoint(Checkpoint(folder))


def test_pieces_and_biases_of_the_second_version(tmp_path):
    file = qwen_image("nvfp4", "plain")
    conversion = {"layout": "row_major", "model_family": "qwen_image"}
    folder = write_folder(tmp_path / "q", converted(file.tensors, ".none", True), CONFIG, conversion)
    model = read_checkpoint(Checkpoint(folder))
    for name, layer in model.layers.items():
        truth, bias = torch.from_numpy(file.weights[name]), torch.from_numpy(file.biases[name])
        assert float((dense_weight(layer) - truth).abs().max() / truth.abs().max()) < 1e-6, name
        assert torch.allclose(layer.bias.double(), bias, atol=1e-5), name
    assert model.layers["transformer_blocks.0.attn.to_v"].input == "transformer_blocks.0.attn.to_qkv"
