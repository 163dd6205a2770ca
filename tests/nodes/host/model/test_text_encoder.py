"""A 4-bit T5 as the host's CLIP: the same text as the dense one, LoRAs, saving, and what is refused."""

import json
from pathlib import Path

import comfy.clip_model
import comfy.lora
import comfy.ops
import comfy.sd
import comfy.utils
import pytest
import safetensors.torch
import torch
from comfy_extras.nodes_model_merging import CLIPSave
from safetensors.torch import save_file
from sampling import relative_error, rounding
from tiny_files import DATA

from svdquant_pack.nodes.host.model.placeholder import Packed, placeholder
from svdquant_pack.nodes.host.model.quantized_linear import SVDQuantLinear
from svdquant_pack.nodes.host.model.text_encoder import load_text_encoder, read_unquantized
from svdquant_pack.svdq_core.apply_layer import dense_weight
from svdquant_pack.svdq_core.blob import BlobLayout
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_text_encoder
from svdquant_pack.svdq_core.errors import CheckpointError, LoraError, SVDQuantError
from svdquant_pack.svdq_core.models import T5

FILE = DATA / "families" / "t5_awq.safetensors"
SIZES = {"d_model": 128, "d_ff": 256, "num_layers": 2, "num_heads": 2, "vocab_size": 64}
CLIP_SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
_CLIP_TOKENS = [[(token, 1.0) for token in (49406, 7, *[49407] * 75)]]
TOKENS = {"t5xxl": [[(t, 1.0) for t in (5, 9, 33, 60, 1, 0, 0, 0)]], "l": _CLIP_TOKENS, "g": _CLIP_TOKENS}
SAME = rounding(1e-6)


@pytest.fixture(autouse=True)
def tiny(host, monkeypatch):
    """The host builds its text encoders in the sizes of the files here, which detection cannot know."""
    load = comfy.sd.load_text_encoder_state_dicts

    def load_tiny(state_dicts, model_options, **others):
        sizes = {"t5xxl_model_config": dict(SIZES), "model_config": dict(CLIP_SIZES)}
        return load(state_dicts, model_options={"dtype": torch.float32} | model_options | sizes, **others)

    monkeypatch.setattr(comfy.sd, "load_text_encoder_state_dicts", load_tiny)
    monkeypatch.setattr(comfy.sd, "detect_te_model", lambda sd: comfy.sd.TEModel.T5_XXL)


def load(kind: str = "chroma", *others: Path, file: Path = FILE):
    with torch.inference_mode():
        return load_text_encoder([str(file), *map(str, others)], [], kind, "default")


def load_dense(kind: str = "chroma", *others: dict):
    model = read_text_encoder(Checkpoint(FILE))
    tensors = {name: tensor.float() for name, tensor in model.plain.items()}
    tensors |= {f"{name}.weight": dense_weight(layer) for name, layer in model.layers.items()}
    with torch.inference_mode():
        return comfy.sd.load_text_encoder_state_dicts(
            [tensors, *others],
            clip_type=getattr(comfy.sd.CLIPType, kind.upper()),
            model_options={"dtype": torch.float32},
        )


def encode(clip, pooled: bool = False):
    with torch.inference_mode():
        return clip.encode_from_tokens(TOKENS, return_pooled=pooled)


def layers(clip) -> list[SVDQuantLinear]:
    return [m for m in clip.cond_stage_model.modules() if isinstance(m, SVDQuantLinear)]


@pytest.fixture(scope="module")
def clip_l(tmp_path_factory) -> Path:
    config = json.loads((Path(comfy.__path__[0]) / "sd1_clip_config.json").read_text()) | CLIP_SIZES
    model = comfy.clip_model.CLIPTextModel(config, torch.float32, "cpu", comfy.ops.manual_cast)
    g = torch.Generator().manual_seed(3)
    tensors = {name: 0.05 * torch.randn(t.shape, generator=g) for name, t in model.state_dict().items()}
    path = tmp_path_factory.mktemp("clip") / "clip_l.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("kind", ["chroma", "sd3", "ltxv", "mochi"])
def test_the_text_is_the_dense_encoders(kind):
    ours = load(kind)
    assert len(layers(ours)) == 14
    assert relative_error(encode(ours), encode(load_dense(kind))) < SAME
    assert ours.patcher.model_size() < load_dense(kind).patcher.model_size()


def test_flux_with_clip_l(clip_l):
    ours, dense = load("flux", clip_l), load_dense("flux", comfy.utils.load_torch_file(str(clip_l)))
    for found, expected in zip(encode(ours, pooled=True), encode(dense, pooled=True), strict=True):
        assert expected.std() > 0 and relative_error(found, expected) < SAME
    outside = [m for n, m in ours.cond_stage_model.clip_l.named_modules() if isinstance(m, torch.nn.Linear)]
    assert outside and all(type(module) is comfy.ops.manual_cast.Linear for module in outside)


def test_the_published_sizes_are_detected(monkeypatch):
    monkeypatch.undo()

    def stand_in(outputs, inputs):
        return placeholder(Packed(torch.zeros(1, dtype=torch.uint8), BlobLayout(inputs, outputs, ())), torch.bfloat16)

    inner = {"wi_0": (10240, 4096), "wi_1": (10240, 4096), "wo": (4096, 10240)}
    state = {
        f"encoder.block.{index}.{linear.host}.weight": stand_in(*inner.get(linear.host[-4:].strip("."), (4096, 4096)))
        for index in range(24)
        for linear in T5.blocks[0].linears
    }
    assert comfy.sd.detect_te_model(state) is comfy.sd.TEModel.T5_XXL


def lora(model, seed: int = 1, rank: int = 4) -> dict[str, torch.Tensor]:
    """For every quantized layer, under the names that ComfyUI's key map has for it."""
    g, file = torch.Generator().manual_seed(seed), {}
    found = comfy.lora.model_lora_keys_clip(model, {})
    for key, target in found.items():
        if "DenseReluDense" in target or ("SelfAttention" in target and "relative" not in target):
            n, k = (256, 128) if "wi_" in target else (128, 256) if target.endswith("wo.weight") else (128, 128)
            if f"{target}" not in {t for t, _ in file.values()}:
                down, up = torch.randn(rank, k, generator=g) * k**-0.5, 0.3 * torch.randn(n, rank, generator=g)
                file[key] = (target, {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up})
    return {name: tensor for _, tensors in file.values() for name, tensor in tensors.items()}


def with_lora(clip, file, strength=0.8):
    with torch.inference_mode():
        return comfy.sd.load_lora_for_models(None, clip, dict(file), 0, strength)[1]


def test_loras_on_the_text_encoder():
    ours, dense = load(), load_dense()
    file = lora(ours.cond_stage_model)
    assert len(file) == 2 * 14
    plain, expected = encode(ours), encode(with_lora(dense, file))
    assert relative_error(expected, plain) > 0.01
    assert relative_error(encode(with_lora(ours, file)), expected) < SAME
    assert torch.equal(encode(ours), plain)


def test_a_lora_that_fits_nothing_is_refused():
    ours = load()
    key = next(iter(lora(ours.cond_stage_model))).removesuffix(".lora_A.weight")
    with pytest.raises(LoraError, match="64"):
        with_lora(ours, {f"{key}.lora_A.weight": torch.ones(4, 64), f"{key}.lora_B.weight": torch.ones(64, 4)})


def test_what_the_host_saves_loads_again(host):
    ours = load()
    with torch.inference_mode():
        CLIPSave().save(ours, "clip/quantized")
    saved = sorted((host.output / "clip").glob("quantized*.safetensors"))
    (path,) = [p for p in saved if "t5xxl" in p.name]
    try:
        again = load(file=path)
    finally:
        for file in saved:
            file.unlink()
    for before, after in zip(layers(ours), layers(again), strict=True):
        assert torch.equal(before.stored()[0].cpu(), after.stored()[0].cpu())
    assert torch.equal(encode(again), encode(ours))


def test_another_copy_for_the_host():
    make, given = (clip := load()).patcher.cached_patcher_init
    with torch.inference_mode():
        assert len(make(*given, disable_dynamic=True).svdquant_layers()) == len(layers(clip))


@pytest.mark.parametrize(
    ("kind", "count", "sentence"),
    [("flux", 0, "type flux takes T5-XXL and clip_l, and 1 file was"), ("chroma", 1, "type chroma takes T5-XXL alone")],
)
def test_files_that_do_not_belong_to_the_type(clip_l, kind, count, sentence):
    with pytest.raises(SVDQuantError, match=sentence):
        load(kind, *[clip_l] * count)


def test_no_4_bit_file_or_one_that_is_missing(clip_l):
    with pytest.raises(SVDQuantError, match=r"clip_l\.safetensors: none of them is a 4-bit T5"):
        load_text_encoder([str(clip_l)], [], "chroma", "default")
    with pytest.raises(SVDQuantError, match=r"nothing in them is clip_l \(.*, which type flux wants beside clip_l"):
        load("flux", FILE)


def test_a_file_beside_it_that_comfyui_quantized(tmp_path):
    save_file({"text_model.x.weight": torch.zeros(2, 2), "scaled_fp8": torch.zeros(2)}, tmp_path / "fp8.safetensors")
    with pytest.raises(SVDQuantError, match=r"fp8\.safetensors is quantized by ComfyUI's own means"):
        load("flux", tmp_path / "fp8.safetensors")


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_file_beside_it_is_read_and_not_mapped(clip_l, tmp_path, ending):
    path = tmp_path / f"l.{ending}"
    if ending == "pt":
        torch.save(safetensors.torch.load_file(clip_l), path)
    else:
        path.write_bytes(clip_l.read_bytes())
    tensors = read_unquantized(str(path))
    before = {name: t.clone() for name, t in tensors.items()}
    path.write_bytes(b"\xff" * path.stat().st_size)  # a mapping would show it; one of a file cut short, SIGBUS
    assert all(torch.equal(t, before[name]) for name, t in tensors.items())


def test_of_a_whole_checkpoint_only_the_projection_is_read(tmp_path):
    wanted = ["text_embedding_projection.weight", "model.diffusion_model.audio_embeddings_connector.a.weight"]
    others = ["model.diffusion_model.patchify_proj.weight", "vae.decoder.weight"]
    save_file({name: torch.ones(2) for name in (*wanted, *others)}, tmp_path / "ltx.safetensors")
    assert sorted(read_unquantized(str(tmp_path / "ltx.safetensors"))) == sorted(wanted)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_file_beside_it_that_is_cut_off(clip_l, tmp_path, ending):
    path = tmp_path / f"cut.{ending}"
    path.write_bytes(clip_l.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=rf"cut\.{ending}: "):
        load("flux", path)


def test_a_damaged_file(tmp_path):
    tensors = comfy.utils.load_torch_file(str(FILE))
    tensors.pop("encoder.block.1.layer.1.DenseReluDense.wo.scales")
    save_file({name: t.contiguous() for name, t in tensors.items()}, tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match=r"half\.safetensors.*DenseReluDense\.wo\.scales"):
        load(file=tmp_path / "half.safetensors")


@pytest.mark.parametrize("of_clip", [False, True])
def test_a_tensor_of_another_size(tmp_path, clip_l, of_clip):
    source, kind = (clip_l, "flux") if of_clip else (FILE, "chroma")
    tensors = comfy.utils.load_torch_file(str(source))
    name = next(n for n in tensors if n.endswith("layer_norm.weight" if not of_clip else "layer_norm1.weight"))
    tensors[name] = torch.ones(5).to(tensors[name].dtype)
    save_file({name: t.contiguous() for name, t in tensors.items()}, tmp_path / "odd.safetensors")
    with pytest.raises(SVDQuantError, match=r"odd\.safetensors.*layer_norm.*5"):
        load(
            kind,
            *([tmp_path / "odd.safetensors"] if of_clip else []),
            file=FILE if of_clip else tmp_path / "odd.safetensors",
        )
