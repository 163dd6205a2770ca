"""GELUs folded into a layer beside them: the same pictures and keys, every kind of LoRA, and a switch."""

import comfy.sd
import pytest
import torch
from comfy_files import ComfyFile
from host_models import put_tiny
from lora_files import adapter_file, diffusers_lora, host_lora
from sampling import relative_error, rounding, sample_flux
from tiny_files import DATA

from svdquant_pack.nodes.host.model import fold
from svdquant_pack.nodes.host.model.build import build_model, load_model
from svdquant_pack.nodes.host.model.fold import FoldedGELU, KernelGELU
from svdquant_pack.nodes.host.model.joined import Joined
from svdquant_pack.svdq_core.apply_layer import dense_bias, dense_weight
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint

# float32 on the CPU: the GELU comes before the codes either way, and LoRAs sum in the same order. On a GPU the GELU's
# hardware tanh moves some codes.
SAME = rounding(1e-6)
# Measured on an H200: 0.074 for w4a4 with DoRA, where 4-bit codes move and the adapter makes much of them.
SAME_WITH_LORA = 2 * SAME if SAME > 1e-3 else SAME


def load(host, monkeypatch, compute="w4a8", switch=""):
    monkeypatch.setenv(fold.SWITCH, switch)
    folder = host.model_folder("diffusion_models")
    with torch.inference_mode():
        return load_model(str(folder / put_tiny(folder)), compute)


def folded(model) -> list[str]:
    return [name for name, module in model.model.named_modules() if isinstance(module, FoldedGELU)]


@pytest.fixture(params=["w4a4", "w4a8", "w4a16"])
def pair(request, host, monkeypatch):
    """With folded GELUs, into the layer behind or (w4a8) in front of them, and without."""
    return [load(host, monkeypatch, request.param, switch) for switch in ("1", "0")]


@pytest.mark.parametrize(("compute", "where"), [("w4a8", "output"), ("w4a4", "input")])
def test_every_gelu_of_the_blocks_is_folded(compute, where, host, monkeypatch):
    model = load(host, monkeypatch, compute, switch="1")
    names = folded(model)
    blocks = model.model.diffusion_model
    singles = [f"single_blocks.{i}.mlp_act" for i in range(len(blocks.single_blocks))]
    assert sorted(name.removeprefix("diffusion_model.") for name in names) == [
        "double_blocks.0.img_mlp.1",
        "double_blocks.0.txt_mlp.1",
        *singles,
    ]
    mlp, single = blocks.double_blocks[0].img_mlp, blocks.single_blocks[0]
    assert [mlp[0].gelu, mlp[2].gelu] == (["output", None] if where == "output" else [None, "input"])
    assert (single.linear1.gelu, single.linear2.gelu) == (("output", None) if where == "output" else (None, "input"))
    folding, first = (
        (single.linear1, 3 * blocks.hidden_size) if where == "output" else (single.linear2, blocks.hidden_size)
    )
    assert folding.gelu_from == first
    plain = load(host, monkeypatch, compute, switch="0")
    assert folded(plain) == []
    assert model.model.state_dict().keys() == plain.model.state_dict().keys()
    assert model.model_size() == plain.model_size()


def test_the_mlps_of_pixart_are_folded(host, monkeypatch):
    monkeypatch.setenv(fold.SWITCH, "1")
    file = ComfyFile("pixart", width=1152, text=4096)  # the host knows this width only
    file.tensors["pos_embed"] = torch.zeros(1, 64 * 64, 1)
    path = host.model_folder("diffusion_models") / "fold-pixart.safetensors"
    file.write(path)
    with torch.inference_mode():
        model = load_model(str(path), "w4a8")
    assert folded(model) == ["diffusion_model.blocks.0.mlp.act"]
    mlp = model.model.diffusion_model.blocks[0].mlp
    assert (mlp.fc1.gelu, mlp.fc2.gelu) == ("output", None)
    path.unlink()


def test_the_picture_stays(pair):
    with_fold, without = (sample_flux(model) for model in pair)
    assert relative_error(with_fold, without) < SAME


@pytest.mark.parametrize("kind", ["low rank", "LoKr", "DoRA", "difference"])
def test_loras_see_and_change_what_they_should(pair, add, kind):
    lora = diffusers_lora(5) if kind == "low rank" else adapter_file(kind)
    with_fold, without = (sample_flux(add(model, lora)) for model in pair)
    assert relative_error(with_fold, sample_flux(pair[0])) > 0.01
    assert relative_error(with_fold, without) < SAME_WITH_LORA


def test_attention_patches_still_apply(pair):
    def halve(attention, extra_options):
        return attention * 0.5

    pictures = []
    for model in pair:
        patched = model.clone()
        patched.set_model_attn1_output_patch(halve)
        pictures.append(sample_flux(patched))
    assert relative_error(pictures[0], sample_flux(pair[0])) > 0.01
    assert relative_error(*pictures) < SAME


def test_the_usual_setting_is_the_kernels_table(host, monkeypatch):
    from svdquant_pack.nodes.host.model import build as host_model

    usual = load(host, monkeypatch)
    every = 2 + len(usual.model.diffusion_model.single_blocks)
    assert len(folded(usual)) == (every if host_model.folds_gelu(usual.load_device, "w4a8") else 0)
    for where, count in (("output", every), ("input", every), (None, 0)):
        monkeypatch.setattr(host_model, "folds_gelu", lambda device, compute, where=where: where)
        assert len(folded(load(host, monkeypatch))) == count
    assert len(folded(load(host, monkeypatch, switch="1"))) == every
    assert folded(load(host, monkeypatch, switch="0")) == []


@pytest.mark.parametrize(("where", "index"), [("output", 0), ("input", 2)])
def test_a_layer_in_16_bits_keeps_its_gelu(where, index, host, monkeypatch):
    model = load(host, monkeypatch, switch="0")
    mlp = model.model.diffusion_model.double_blocks[0].img_mlp
    mlp[index].layout = None
    assert fold.fold_gelus(model.model, where) == 1
    assert isinstance(mlp[1], torch.nn.GELU)


@pytest.mark.parametrize("where", ["input", "output"])
def test_a_gelu_that_its_owner_computes_by_itself_is_left_alone(where, host, monkeypatch):
    """As in Wan's blocks since ComfyUI 0.33, where the GELU would otherwise be applied twice."""

    class OwnForward(torch.nn.Sequential):
        def forward(self, x):
            return self[2](torch.nn.functional.gelu(self[0](x), approximate="tanh"))

    model = load(host, monkeypatch, switch="0")
    block = model.model.diffusion_model.double_blocks[0]
    block.img_mlp.__class__ = OwnForward
    assert fold.fold_gelus(block, where) == 1
    assert isinstance(block.img_mlp[1], torch.nn.GELU) and isinstance(block.txt_mlp[1], fold.FoldedGELU)


def test_a_linear1_in_16_bits_leaves_its_gelu(host, monkeypatch):
    model = load(host, monkeypatch, switch="0")
    block = model.model.diffusion_model.single_blocks[0]
    block.linear1.layout, block.mlp_act = None, torch.nn.GELU(approximate="tanh")
    fold.fold_gelus(model.model, "output")
    assert isinstance(block.mlp_act, torch.nn.GELU) and block.linear1.gelu is None


def test_a_linear2_that_cannot_begin_there_leaves_the_gelu_to_a_kernel(host, monkeypatch):
    model = load(host, monkeypatch, switch="0")
    block = model.model.diffusion_model.single_blocks[0]
    block.mlp_act, block.mlp_hidden_dim = torch.nn.GELU(approximate="tanh"), block.mlp_hidden_dim - 64
    fold.fold_gelus(block, "input")
    fold.speed_up_gelus(block)
    assert isinstance(block.mlp_act, KernelGELU) and block.linear2.gelu is None


@pytest.mark.parametrize("compute", ["w4a4", "w4a8", "w4a16"])
def test_what_linear2_takes_is_never_joined(compute, host, monkeypatch):
    model, joins, cuts = load(host, monkeypatch, compute, "1"), [], []
    monkeypatch.setattr(Joined, "done", lambda self, done=Joined.done: joins.append(self) or done(self))
    cut_at = Joined.cut_at
    monkeypatch.setattr(Joined, "cut_at", lambda self, spans: cuts.append(cut_at(self, spans)) or cuts[-1])
    sample_flux(model)
    assert joins == [] and {type(sides) for sides in cuts} == {tuple}
    assert len(cuts) >= len(model.model.diffusion_model.single_blocks)


@pytest.mark.parametrize("seed", [5, 6])
def test_bypass_loras_act_in_front_of_the_gelu(pair, seed):
    """The host's other way to apply a LoRA wraps the layer's forward."""
    pictures = []
    for model in pair:
        bypassed, _ = comfy.sd.load_bypass_lora_for_models(model, None, host_lora(seed), 1.0, 0.0)
        pictures.append(sample_flux(bypassed))
        assert relative_error(pictures[-1], sample_flux(model)) > 0.01
    assert relative_error(*pictures) < SAME_WITH_LORA
    assert relative_error(*(sample_flux(model) for model in pair)) < SAME  # and afterwards all is as before


def test_a_hook_on_linear2_sees_its_input_with_the_gelu(pair):
    seen = []
    for model in pair:
        linear2 = model.model.diffusion_model.single_blocks[0].linear2
        hook = linear2.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].float().clone()))
        sample_flux(model)
        hook.remove()
    half = len(seen) // 2
    assert half and all(relative_error(a, b) < SAME_WITH_LORA for a, b in zip(seen[:half], seen[half:], strict=True))


def test_a_hook_on_linear1_sees_it_without_the_gelu(pair):
    seen = []
    for model in pair:
        linear1 = model.model.diffusion_model.single_blocks[0].linear1
        hook = linear1.register_forward_hook(lambda module, inputs, out: seen.append(out.float().clone()))
        sample_flux(model)
        hook.remove()
    half = len(seen) // 2
    assert half and all(relative_error(a, b) < SAME_WITH_LORA for a, b in zip(seen[:half], seen[half:], strict=True))


def test_linear2_in_16_bits_takes_what_torch_cat_gives(host, monkeypatch):
    pictures = []
    for switch in ("0", "1"):
        monkeypatch.setenv(fold.SWITCH, switch)
        quantized = read_checkpoint(Checkpoint(DATA / "flux_tiny_int4_r32.safetensors"))
        for name in [n for n in quantized.layers if n.endswith("linear2")]:
            layer = quantized.layers.pop(name)
            quantized.plain |= {f"{name}.weight": dense_weight(layer), f"{name}.bias": dense_bias(layer)}
        with torch.inference_mode():
            model = build_model(quantized, "w4a8")
        pictures.append(sample_flux(model))
    assert model.model.diffusion_model.single_blocks[0].linear1.gelu == "output"
    assert relative_error(*pictures) < SAME
