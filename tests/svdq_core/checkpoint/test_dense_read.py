"""16-bit models: the host's, BFL's and diffusers' names give the same tensors; what cannot be quantized is refused."""

import pytest
import torch
from checkpoint_files import write_legacy_folder
from dense_compare import dense_model
from pixart_files import pixart
from safetensors.torch import save_file
from tiny_files import DATA

from svdquant_pack.svdq_core.checkpoint import Checkpoint
from svdquant_pack.svdq_core.checkpoint.dense_read import DenseModel
from svdquant_pack.svdq_core.errors import CheckpointError

WIDTH = 256
# the names of FluxTransformer2DModel, each a slice of rows of a host tensor
FLUX_BLOCKS = {
    "double_blocks.0.img_mod.lin": {"transformer_blocks.0.norm1.linear": 6},
    "double_blocks.0.txt_mod.lin": {"transformer_blocks.0.norm1_context.linear": 6},
    "double_blocks.0.img_attn.qkv": {f"transformer_blocks.0.attn.to_{n}": 1 for n in "qkv"},
    "double_blocks.0.txt_attn.qkv": {f"transformer_blocks.0.attn.add_{n}_proj": 1 for n in "qkv"},
    "double_blocks.0.img_attn.proj": {"transformer_blocks.0.attn.to_out.0": 1},
    "double_blocks.0.txt_attn.proj": {"transformer_blocks.0.attn.to_add_out": 1},
    "double_blocks.0.img_mlp.0": {"transformer_blocks.0.ff.net.0.proj": 4},
    "double_blocks.0.img_mlp.2": {"transformer_blocks.0.ff.net.2": 1},
    "double_blocks.0.txt_mlp.0": {"transformer_blocks.0.ff_context.net.0.proj": 4},
    "double_blocks.0.txt_mlp.2": {"transformer_blocks.0.ff_context.net.2": 1},
    "single_blocks.0.modulation.lin": {"single_transformer_blocks.0.norm.linear": 3},
    "single_blocks.0.linear1": {
        **{f"single_transformer_blocks.0.attn.to_{n}": 1 for n in "qkv"},
        "single_transformer_blocks.0.proj_mlp": 4,
    },
    "single_blocks.0.linear2": {"single_transformer_blocks.0.proj_out": 1},
}
FLUX_NORMS = {
    "double_blocks.0.img_attn.norm.query_norm.weight": "transformer_blocks.0.attn.norm_q.weight",
    "double_blocks.0.img_attn.norm.key_norm.weight": "transformer_blocks.0.attn.norm_k.weight",
    "double_blocks.0.txt_attn.norm.query_norm.weight": "transformer_blocks.0.attn.norm_added_q.weight",
    "double_blocks.0.txt_attn.norm.key_norm.weight": "transformer_blocks.0.attn.norm_added_k.weight",
    "single_blocks.0.norm.query_norm.weight": "single_transformer_blocks.0.attn.norm_q.weight",
    "single_blocks.0.norm.key_norm.weight": "single_transformer_blocks.0.attn.norm_k.weight",
}
FLUX_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}


@pytest.fixture(scope="module")
def flux() -> dict[str, torch.Tensor]:
    """The tiny FLUX under the host's names, bfloat16."""
    tensors = dense_model(DATA / "flux_tiny_int4_r32.safetensors")
    return {name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()}


def diffusers_flux(host: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    made = {name: host[ours] for ours, name in FLUX_NORMS.items()}
    for end in ("weight", "bias"):
        for ours, pieces in FLUX_BLOCKS.items():
            rows = host[f"{ours}.{end}"].split([WIDTH * height for height in pieces.values()])
            made |= {f"{name}.{end}": piece for name, piece in zip(pieces, rows, strict=True)}
        made |= {
            f"{name}.{end}": host[f"{ours}.{end}"] for ours, name in FLUX_OUTSIDE.items() if f"{ours}.{end}" in host
        }
        shift, scale = host[f"final_layer.adaLN_modulation.1.{end}"].chunk(2)
        made[f"norm_out.linear.{end}"] = torch.cat((scale, shift))
    return {name: tensor.contiguous() for name, tensor in made.items()}


def dense(path, tensors, **more) -> DenseModel:
    save_file(tensors, path, **more)
    return DenseModel(Checkpoint(path))


def assert_same(model: DenseModel, host: dict[str, torch.Tensor]) -> None:
    assert set(model) == set(host) and not model.ignored
    for name, tensor in host.items():
        assert torch.equal(model[name], tensor), name
        assert model.shape(name) == tuple(tensor.shape), name


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_names_of_the_host(flux, tmp_path, prefix):
    assert_same(dense(tmp_path / "a.safetensors", {prefix + name: t for name, t in flux.items()}), flux)


def test_names_of_bfl(flux, tmp_path):
    def former(name: str) -> str:
        return name.replace("_norm.weight", "_norm.scale")

    assert any(former(name) != name for name in flux)
    assert_same(dense(tmp_path / "a.safetensors", {former(name): t for name, t in flux.items()}), flux)


def test_names_of_diffusers(flux, tmp_path):
    assert_same(dense(tmp_path / "a.safetensors", diffusers_flux(flux)), flux)


def test_a_folder_of_diffusers_in_two_shards(flux, tmp_path):
    tensors = sorted(diffusers_flux(flux).items())
    folder = tmp_path / "pipeline" / "transformer"
    folder.mkdir(parents=True)
    shards = {"a.safetensors": dict(tensors[::2]), "b.safetensors": dict(tensors[1::2])}
    for file, part in shards.items():
        save_file(part, folder / file)
    places = ", ".join(f'"{name}": "{file}"' for file, part in shards.items() for name in part)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(f'{{"weight_map": {{{places}}}}}', encoding="utf-8")
    assert_same(DenseModel(Checkpoint(tmp_path / "pipeline")), flux)


@pytest.mark.parametrize("which", [0, 1], ids=["host", "diffusers"])
def test_pixart(tmp_path, which):
    assert_same(dense(tmp_path / "a.safetensors", pixart()[which]), pixart()[0])


def test_what_has_no_place_is_named(flux, tmp_path):
    model = dense(tmp_path / "a.safetensors", flux | {"distilled_extra": torch.zeros(2)})
    assert model.ignored == ["distilled_extra"] and "distilled_extra" not in model


def without(tensors: dict, name: str) -> dict:
    return {key: tensor for key, tensor in tensors.items() if key != name}


MLP = "double_blocks.0.img_mlp.0.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: without(t, MLP), f"1 missing tensors: {MLP}"),
        (lambda t: without(t, "img_in.bias"), "1 missing tensors: img_in.bias"),
        (lambda t: t | {MLP: t[MLP].to(torch.float8_e4m3fn)}, "F8_E4M3, expected BF16 or F16 or F32"),
        (lambda t: t | {MLP: torch.zeros(4, 4, dtype=torch.int8)}, "I8, expected"),
        (lambda t: t | {MLP: t[MLP][:, :128].contiguous()}, r"the shape \(1024, 128\), expected \(1024, 256\)"),
        (lambda t: {"a.lora_A.weight": t[MLP]}, "no model that can be quantized here"),
        (lambda t: {f"{n}.img_mod.1.weight": t[MLP] for n in ("transformer_blocks.0",)}, "not a Qwen-Image file"),
    ],
    ids=["a layer", "outside the blocks", "fp8", "int8", "shape", "no model", "another family"],
)
def test_what_cannot_be_quantized_is_said(flux, tmp_path, change, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        dense(tmp_path / "a.safetensors", change(flux))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_quantized_model_is_refused(kind, tmp_path):
    path = DATA / "flux_tiny_int4_r32.safetensors" if kind == "file" else write_legacy_folder(tmp_path / "older")
    with pytest.raises(CheckpointError, match="an SVDQuant model already"):
        DenseModel(Checkpoint(path))
