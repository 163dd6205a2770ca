"""Models that should not, or can barely, be quantized: each gives a sentence, or a sound file."""

from pathlib import Path

import pytest
import torch
from host_models import put_dense
from quantize_node import quantize
from recordings import save, start
from safetensors.torch import load_file, save_file
from sampling import relative_error, sample_flux

from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.errors import SVDQuantError

QKV, PROJ = "double_blocks.0.img_attn.qkv", "double_blocks.0.img_attn.proj"
UP, DOWN = "double_blocks.0.img_mlp.0", "double_blocks.0.img_mlp.2"


@pytest.fixture(scope="module")
def folder(host):
    return host.model_folder("diffusion_models")


@pytest.fixture
def changed(host, folder):
    """A loader of the tiny dense FLUX with some of its tensors changed."""

    def load(change, name: str):
        tensors = load_file(folder / put_dense(folder))
        change(tensors)
        save_file(tensors, folder / f"{name}.safetensors")
        return host.call("UNETLoader", unet_name=f"{name}.safetensors", weight_dtype="default")[0]

    return load


def written(host, name: str) -> list[Path]:
    return [p for p in (host.output / "diffusion_models").rglob("*") if name in p.name]


@pytest.mark.parametrize(
    ("tensor", "value", "sentence"),
    [
        (f"{QKV}.weight", float("nan"), rf"{QKV}: the weight holds NaN or infinite"),
        (f"{DOWN}.bias", float("inf"), rf"{DOWN}: the bias holds NaN or infinite"),
        ("single_blocks.0.modulation.lin.weight", float("-inf"), "modulation.lin: the weight holds NaN or infinite"),
        ("img_in.weight", float("nan"), "img_in.weight"),
    ],
)
def test_broken_weights_are_named(host, changed, tensor, value, sentence):
    def destroy(tensors):
        tensors[tensor].reshape(-1)[5] = value

    model = changed(destroy, "broken")
    # what runs on noise goes through the broken layer as well; the layer itself is named, not its victims
    with pytest.raises(SVDQuantError, match=sentence):
        quantize(host, model, filename_prefix="broken")
    assert not [p for p in written(host, "broken") if p.suffix == ".safetensors"]


def test_dead_channels_and_empty_layers(host, changed):
    def kill(tensors):
        tensors[f"{PROJ}.weight"].zero_()  # a layer without effect
        tensors[f"{QKV}.weight"][:, :16] = 0  # channels that nobody reads
        tensors[f"{UP}.weight"][:64], tensors[f"{UP}.bias"][:64] = 0, 0  # channels of DOWN that are always 0
        tensors[f"{DOWN}.weight"][:32] = 0  # outputs that are only their bias

    model = changed(kill, "dead")
    recording = start(host, model, name="dead")
    sample_flux(recording)
    save(host, recording)
    expected = sample_flux(model)
    for method, calibration in (("fast", "none"), ("best", "dead.safetensors")):
        for precision in ("int4", "nvfp4"):
            found, path, _, _ = quantize(
                host, model, method=method, calibration=calibration, precision=precision, filename_prefix="dead"
            )
            assert relative_error(sample_flux(found), expected) < 0.05  # and with that, finite
            layers = read_checkpoint(Checkpoint(Path(path))).layers
            for layer in layers.values():
                layer.check("dead")
            factor = layers[DOWN].parts[0]["smooth_factor"].float()
            assert torch.equal(factor[:64], torch.ones(64))


@pytest.mark.parametrize("rank", [0, 16, 256])
def test_ranks_from_none_to_the_layers_own(host, folder, rank):
    (model,) = host.call("UNETLoader", unet_name=put_dense(folder), weight_dtype="default")
    found, path, _, _ = quantize(host, model, rank=rank, filename_prefix="ranks")
    assert relative_error(sample_flux(found), sample_flux(model)) < (0.05 if rank else 0.08)
    assert f"_r{rank}-" in path
    assert read_checkpoint(Checkpoint(Path(path))).layers[QKV].parts[0].rank == rank


@pytest.mark.parametrize("rank", [8, 40, -16, 272])
def test_other_ranks_are_refused(host, folder, rank):
    (model,) = host.call("UNETLoader", unet_name=put_dense(folder), weight_dtype="default")
    with pytest.raises(SVDQuantError, match=rf"rank (is )?{rank}[:,] .* 0 to 256"):
        quantize(host, model, rank=rank, filename_prefix="odd-rank")
    assert not written(host, "odd-rank")


def test_scaled_fp8_is_refused(host, folder):
    tensors = load_file(folder / put_dense(folder, dtype=torch.bfloat16))
    for name in (QKV, DOWN):
        weight = tensors[f"{name}.weight"].float()
        scale = weight.abs().max() / 448
        tensors[f"{name}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}.scale_weight"] = scale.reshape(1)
    tensors["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(tensors, folder / "scaled-fp8.safetensors")
    (model,) = host.call("UNETLoader", unet_name="scaled-fp8.safetensors", weight_dtype="default")
    with pytest.raises(SVDQuantError, match=r"float8_e4m3fn.*quantizing twice.*Load the BF16 file"):
        quantize(host, model, filename_prefix="scaled-fp8")
    assert not written(host, "svdq-int4_r16-scaled-fp8")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8], ids=str)
def test_packed_weights_of_other_packs_are_refused(host, changed, dtype):
    """GGUF and int8 loaders put bytes where weights were."""
    model = changed(lambda tensors: None, "packed")
    module = model.model.diffusion_model.get_submodule(UP)
    module.weight = torch.nn.Parameter(torch.zeros(64, 32, dtype=dtype), requires_grad=False)
    with pytest.raises(SVDQuantError, match=rf"{UP}\.weight is u?int8.*reduced precision.*BF16"):
        quantize(host, model, filename_prefix="packed")


def test_a_recording_with_a_reduced_model_serves_the_full_one(host, folder):
    """fp8 fits where BF16 does not: record with it, quantize the BF16 file."""
    name = put_dense(folder, dtype=torch.bfloat16)
    (small,) = host.call("UNETLoader", unet_name=name, weight_dtype="fp8_e4m3fn")
    (full,) = host.call("UNETLoader", unet_name=name, weight_dtype="default")
    recording = start(host, small, name="reduced")
    sample_flux(recording)
    save(host, recording)
    model, _, report, _ = quantize(host, full, calibration="reduced.safetensors", filename_prefix="from-reduced")
    assert "recorded on another model of the same sizes" in report
    assert relative_error(sample_flux(model), sample_flux(full)) < 0.05
