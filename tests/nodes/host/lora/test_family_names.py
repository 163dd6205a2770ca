"""LoRAs for every described family, in any tool's spelling: our node gives what the host's dense model gives."""

import random

import comfy.lora
import comfy.sd
import pytest
import torch
from families.models import forward, load_dense, load_quantized
from safetensors.torch import save_file
from sampling import relative_error, rounding

from svdquant_pack.nodes.host.lora.family_names import family_names, swap_halves
from svdquant_pack.nodes.host.lora.lora_file import apply_lora_file
from svdquant_pack.nodes.host.lora.spellings import PREFIXES, core_of
from svdquant_pack.svdq_core.errors import LoraError

SAME = rounding(1e-5)
DESCRIBED = ("flux1", "flux2", "chroma", "zimage", "krea2", "qwen_image", "sdxl", "pixart", "minimax_h3")
OTHERS = ("wan_t2v", "ltxv", "hunyuan_image")
FACTORS = {".lora_A.weight": 1, ".lora_B.weight": 0}


class Pair:
    """Our MODEL and the host's dense one of the same weights."""

    def __init__(self, name: str):
        self.name, self.ours, self.dense = name, load_quantized(name), load_dense(name)
        self.targets = comfy.lora.model_lora_keys_unet(self.dense.model, {})

    def picture(self, patcher) -> torch.Tensor:
        return forward(self.name, patcher)


@pytest.fixture(scope="module", params=DESCRIBED + OTHERS)
def pair(request, host):
    return Pair(request.param)


@pytest.fixture(scope="module")
def h3(host):
    return Pair("minimax_h3")


def apply(patcher, lora: dict, tmp_path, strength: float = 0.7):
    path = tmp_path / "some.safetensors"
    save_file({key: t.contiguous() for key, t in lora.items()}, path)
    return apply_lora_file(patcher, str(path), strength)


def factors(layers: dict[str, tuple[int, int]], seed: int) -> dict[str, torch.Tensor]:
    """Names -> (outputs, inputs) as a LoRA of rank 4."""
    g, lora = torch.Generator().manual_seed(seed), {}
    for name, (outputs, inputs) in layers.items():
        lora[f"{name}.lora_A.weight"] = torch.randn(4, inputs, generator=g) * inputs**-0.5
        lora[f"{name}.lora_B.weight"] = torch.randn(outputs, 4, generator=g) * 0.3
    return lora


def named_layers(pair: Pair, seed: int) -> dict[str, tuple[int, int]]:
    """One of the host's names for every quantized layer, or for a part of it -> (outputs, inputs)."""
    layers, names = pair.ours.svdquant_layers(), {}
    for name, target in pair.targets.items():
        key, offset = (target, None) if isinstance(target, str) else target[:2]
        if key in layers and not name.startswith("lora_"):
            size = [layers[key].out_features, layers[key].in_features]
            if offset is not None:
                size[offset[0]] = offset[2]
            names.setdefault(key, []).append((name, tuple(size)))
    choose = random.Random(seed)
    return dict(choose.choice(found) for found in names.values())


def test_prefixes_in_any_mixture(pair, tmp_path):
    """Of a file whose layers have any of the host's names, each behind other prefixes and with PEFT's adapter name."""
    layers = named_layers(pair, 3)
    assert len(layers) >= 4
    lora = factors(layers, 3)
    expected = pair.picture(comfy.sd.load_lora_for_models(pair.dense, None, lora, 0.7, 0)[0])
    assert relative_error(expected, pair.picture(pair.dense)) > 1e-3
    choose, spelled = random.Random(4), {}
    for name in layers:
        bare = name
        while prefix := next((p for p in PREFIXES if bare.startswith(p)), ""):
            bare = bare.removeprefix(prefix)
        new = choose.choice(["", "transformer.", "base_model.model.", "unet.base_model.model."]) + bare
        adapter = choose.choice(["", ".default", ".my_style"])
        for half in "AB":
            spelled[f"{new}.lora_{half}{adapter}.weight"] = lora[f"{name}.lora_{half}.weight"]
    for patcher in (pair.ours, pair.dense):
        patched, report = apply(patcher, spelled, tmp_path)
        assert not report.ignored and not report.skipped, report.text()
        assert relative_error(pair.picture(patched), expected) < SAME


def test_kohya_names(pair, tmp_path):
    layers = {name: size for name, size in named_layers(pair, 5).items() if name.startswith("diffusion_model.")}
    lora = factors(layers, 5)
    expected = pair.picture(comfy.sd.load_lora_for_models(pair.dense, None, lora, 0.7, 0)[0])
    ends = {".lora_A.weight": ".lora_down.weight", ".lora_B.weight": ".lora_up.weight"}
    spelled = {}
    for name in layers:
        for end, other in ends.items():
            kohya = name.removeprefix("diffusion_model.").replace(".", "_")
            spelled[f"lora_unet_{kohya}{other}"] = lora[name + end]
    patched, report = apply(pair.ours, spelled, tmp_path)
    assert not report.ignored
    assert relative_error(pair.picture(patched), expected) < SAME


def test_parts_share_a_picture_with_the_whole(pair):
    """No name that we add stands for what the host's own map says otherwise."""
    cores = {core_of(name): target for name, target in pair.targets.items()}
    for name, named in family_names(pair.ours).items():
        assert cores.get(core_of(name), named.target) == named.target


# MiniMax H3 in diffusers' names, which the host does not know


def h3_lora(h3: Pair, bias: bool = False) -> tuple[dict, dict]:
    """A LoRA in diffusers' names, and the same in the host's."""
    layers = {key: (m.out_features, m.in_features) for key, m in h3.ours.svdquant_layers().items()}
    qkv, fc1 = (layers[f"diffusion_model.blocks.0.{name}.weight"] for name in ("attn.qkv_proj", "mlp.fc1"))
    inner = qkv[0] // 3
    theirs = factors(
        {
            "transformer.transformer_blocks.0.attn.to_q": (inner, qkv[1]),
            "transformer.transformer_blocks.0.attn.to_v": (inner, qkv[1]),
            "transformer.transformer_blocks.1.attn.to_out.0": layers["diffusion_model.blocks.1.attn.out_proj.weight"],
            "transformer.transformer_blocks.0.ff.net.0.proj": fc1,
            "transformer.transformer_blocks.1.ff.net.2": layers["diffusion_model.blocks.1.mlp.fc2.weight"],
        },
        7,
    )

    def delta(name: str) -> torch.Tensor:
        down, up = (theirs[f"transformer.transformer_blocks.{name}.lora_{half}.weight"] for half in "AB")
        return up @ down

    whole = torch.zeros(qkv)
    whole[:inner], whole[2 * inner :] = delta("0.attn.to_q"), delta("0.attn.to_v")
    ours = {
        "diffusion_model.blocks.0.attn.qkv_proj.diff": whole,
        "diffusion_model.blocks.0.mlp.fc1.diff": delta("0.ff.net.0.proj").roll(fc1[0] // 2, dims=0),
        "diffusion_model.blocks.1.attn.out_proj.diff": delta("1.attn.to_out.0"),
        "diffusion_model.blocks.1.mlp.fc2.diff": delta("1.ff.net.2"),
    }
    return theirs, ours


def test_minimax_h3_in_diffusers_names(h3, tmp_path):
    theirs, ours = h3_lora(h3)
    expected = h3.picture(comfy.sd.load_lora_for_models(h3.dense, None, ours, 0.7, 0)[0])
    assert relative_error(expected, h3.picture(h3.dense)) > 1e-3
    for patcher in (h3.ours, h3.dense):
        patched, report = apply(patcher, theirs, tmp_path)
        assert not report.ignored and len(report.matched) == 4
        assert relative_error(h3.picture(patched), expected) < SAME
    kohya = {}
    for key, tensor in theirs.items():
        name, end = key.split(".lora_")
        other = {"A.weight": ".lora_down.weight", "B.weight": ".lora_up.weight"}[end]
        kohya["lora_unet_" + name.removeprefix("transformer.").replace(".", "_") + other] = tensor
    assert relative_error(h3.picture(apply(h3.ours, kohya, tmp_path)[0]), expected) < SAME


def test_swapped_halves_of_other_kinds():
    rows = torch.arange(8.0)[:, None] * torch.ones(1, 3)
    for suffix in (".lora_B.weight", ".lora_up.weight", ".diff", ".diff_b", ".set_weight", ".hada_w1_a", ".dora_scale"):
        tensor = rows[:, 0] if suffix == ".diff_b" else rows
        assert torch.equal(swap_halves("x", suffix, tensor), tensor.roll(4, dims=0)), suffix
    for suffix in (".lora_A.weight", ".alpha", ".hada_w1_b", ".lokr_w2"):
        assert torch.equal(swap_halves("x", suffix, rows), rows)
    left, right = torch.randn(4, 3), torch.randn(5, 2)
    assert torch.equal(torch.kron(swap_halves("x", ".lokr_w1", left), right), torch.kron(left, right).roll(10, dims=0))
    for suffix, tensor in ((".oft_blocks", rows), (".lokr_w1", torch.randn(3, 3)), (".a1.weight", rows)):
        with pytest.raises(LoraError, match=r"x\.\w+.*two halves of this layer in the other order"):
            swap_halves("x", suffix, tensor)


def test_lumina_2s_wrong_offsets_are_refused_by_name(host, tmp_path):
    """The host's names for q, k and v assume as many heads of keys as of queries."""
    pair = Pair("lumina2")
    wrong = next(name for name, target in pair.targets.items() if "to_v" in name and not isinstance(target, str))
    key, (_, start, length) = pair.targets[wrong][:2]
    lora = factors({wrong: (length, pair.ours.svdquant_layers()[key].in_features)}, 1)
    layer = key.removeprefix("diffusion_model.").removesuffix(".weight").replace(".", r"\.")
    for patcher in (pair.ours, pair.dense):
        with pytest.raises(LoraError, match=rf"some\.safetensors: {layer}: .* rows {start} to {start + length}"):
            apply(patcher, lora, tmp_path)
    with pytest.raises(LoraError, match=rf"{layer}: "):
        comfy.sd.load_lora_for_models(pair.ours, None, lora, 0.7, 0)
