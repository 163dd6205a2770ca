"""Files that the tools of others packed become the dense weights that they were packed from; tests/data/README.md."""

from pathlib import Path

import pytest
import torch
from checkpoint_files import write_tensors
from safetensors import safe_open
from tiny_files import DATA

from svdquant_pack.svdq_core.apply_layer import dense_bias, dense_weight
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint, read_text_encoder
from svdquant_pack.svdq_core.checkpoint.formats import FORMATS, save_model
from svdquant_pack.svdq_core.errors import CheckpointError
from svdquant_pack.svdq_core.quantized_model import QuantizedModel
from svdquant_pack.svdq_core.stack import same_bits

FILES = {
    "zimage_nvfp4": ("zimage", 5, 32),
    "qwen_nvfp4": ("qwen_image", 14, 48),
    "krea2_int4": ("krea2", 8, 32),
    "t5_awq": ("t5", 14, 0),
}
CLOSE = 4e-3  # of a weight: what the tools lost in rounding to bfloat16; where our arithmetic is exact it is far less


def path_of(name: str) -> Path:
    return DATA / "families" / f"{name}.safetensors"


def read(name: str) -> QuantizedModel:
    checkpoint = Checkpoint(path_of(name))
    return read_text_encoder(checkpoint) if name == "t5_awq" else read_checkpoint(checkpoint)


def dense(model: QuantizedModel) -> dict[str, torch.Tensor]:
    found = dict(model.plain)
    for name, layer in model.layers.items():
        found[f"{name}.weight"], bias = dense_weight(layer), dense_bias(layer)
        found |= {} if bias is None else {f"{name}.bias": bias}
    return found


def relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.float() - truth.float()).norm() / truth.float().norm().clamp(min=1e-12))


@pytest.mark.parametrize("name", FILES)
def test_the_dense_weights_are_found_again(name):
    model = read(name)
    family, layers, rank = FILES[name]
    assert (model.architecture.name, len(model.layers)) == (family, layers)
    assert model.ranks == ([rank] if rank else [])
    with safe_open(DATA / "families" / f"{name}_truth.safetensors", "pt") as file:
        truth = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    found = dense(model)
    assert found.keys() == {key.partition("|")[0] for key in truth}
    for key, tensor in found.items():
        if key in truth:
            assert relative(tensor, truth[key]) < CLOSE, key
            continue
        assert relative(tensor[truth[f"{key}|rows"].long()], truth[f"{key}|sample"]) < CLOSE, key
        if f"{key}|norm" in truth:
            assert relative(tensor.float().norm(dim=1), truth[f"{key}|norm"]) < CLOSE, key


@pytest.mark.parametrize("name", [name for name in FILES if name != "t5_awq"])
def test_written_again_it_is_the_same_file(name, tmp_path):
    """Pieces joined, halves put back, tables in rows, as the tools wrote them."""
    model = read(name)
    save_model(tmp_path / "again.safetensors", model, FORMATS["nunchaku"](model.architecture))
    before, after = Checkpoint(path_of(name)), Checkpoint(tmp_path / "again.safetensors")
    assert set(before) == set(after)
    assert [key for key in before if not same_bits(before[key], after[key])] == []


class TestT5:
    def test_a_group_of_128_is_two_of_64(self):
        part = read("t5_awq").layers["encoder.block.0.layer.1.DenseReluDense.wo"].parts[0]
        assert part["wscales"].shape == part["wzeros"].shape == (4, 128)
        assert torch.equal(part["wscales"][0], part["wscales"][1])
        assert not torch.equal(part["wscales"][1], part["wscales"][2])

    def test_embeddings_that_are_stored_twice(self, tmp_path):
        with safe_open(path_of("t5_awq"), "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
        model = read_text_encoder(Checkpoint(write_tensors(tmp_path / "t5.safetensors", tensors)))
        assert model.plain.keys() == read("t5_awq").plain.keys()

    def test_a_diffusion_model_is_refused(self):
        with pytest.raises(CheckpointError, match="no 4-bit T5 text encoder"):
            read_text_encoder(Checkpoint(path_of("krea2_int4")))

    def test_it_is_no_diffusion_model(self):
        with pytest.raises(CheckpointError, match=r"Use Load Text Encoder \(SVDQuant\)"):
            read_checkpoint(Checkpoint(path_of("t5_awq")))

    @pytest.mark.parametrize(
        ("end", "change", "sentence"),
        [
            ("scales", lambda t: t[:, :64], "expected (1, 128) or up to (8, 128)"),
            ("scaled_zeros", lambda t: t.repeat(2, 1), "expected (1, 128) or up to (8, 128)"),
            ("qweight", lambda t: t[:, :100], "expected int16"),
            ("scales", lambda t: t * float("nan"), "holds NaN or infinite values"),
        ],
    )
    def test_damage_is_named(self, end, change, sentence, tmp_path):
        with safe_open(path_of("t5_awq"), "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        name = f"encoder.block.1.layer.0.SelfAttention.v.{end}"
        path = write_tensors(tmp_path / "t5.safetensors", tensors | {name: change(tensors[name])})
        with pytest.raises(CheckpointError) as caught:
            read_text_encoder(Checkpoint(path))
        assert sentence in str(caught.value) and "SelfAttention.v" in str(caught.value)


def skipped_refiners(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Refiners in 16 bits, as nunchaku keeps them: q, k, v apart, both halves of the MLP as one layer."""
    draw = torch.Generator().manual_seed(2)
    added = {}
    for kind in ("noise_refiner", "context_refiner"):
        for name, source in tensors.items():
            if name.startswith("layers.0.") and (".norm_" in name or "norm1" in name or "norm2" in name):
                added[f"{kind}.0.{name.removeprefix('layers.0.')}"] = source.clone()
            if name.startswith("layers.0.adaLN") and kind == "noise_refiner":
                added[f"{kind}.0.{name.removeprefix('layers.0.')}"] = source.clone()
        shapes = {f"attention.to_{n}": (128, 128) for n in ("q", "k", "v", "out.0")}
        shapes |= {"feed_forward.net.0.proj": (512, 128), "feed_forward.net.2": (128, 256)}
        for name, shape in shapes.items():
            added[f"{kind}.0.{name}.weight"] = torch.randn(*shape, generator=draw).bfloat16()
    return tensors | added


def test_refiners_in_16_bits(tmp_path):
    checkpoint = Checkpoint(path_of("zimage_nvfp4"))
    tensors = skipped_refiners({name: checkpoint[name] for name in checkpoint})
    path = write_tensors(tmp_path / "skip.safetensors", tensors, checkpoint.metadata)
    model = read_checkpoint(Checkpoint(path))
    before = "context_refiner.0"
    qkv = torch.cat([tensors[f"{before}.attention.to_{n}.weight"] for n in "qkv"])
    assert torch.equal(model.plain[f"{before}.attention.qkv.weight"], qkv)
    first, second = tensors[f"{before}.feed_forward.net.0.proj.weight"].chunk(2)
    assert torch.equal(model.plain[f"{before}.feed_forward.w3.weight"], first)
    assert torch.equal(model.plain[f"{before}.feed_forward.w1.weight"], second)
    save_model(tmp_path / "again.safetensors", model, FORMATS["nunchaku"](model.architecture))
    after = Checkpoint(tmp_path / "again.safetensors")
    assert '"skip_refiners": true' in after.metadata["quantization_config"]
    assert set(after) == set(tensors)
    assert [name for name in tensors if not same_bits(after[name], tensors[name])] == []
