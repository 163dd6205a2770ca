"""Inputs worked out from the weights: what the host's own model sees on the same noise, and the errors get smaller."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from svdquant_pack import ROOT
from svdquant_pack.kernels.reference import dequantize_awq
from svdquant_pack.svdq_core.apply_layer import apply_layer
from svdquant_pack.svdq_core.models import FLUX
from svdquant_pack.svdq_core.quantize import QuantSpec, quantize_layer
from svdquant_pack.svdq_core.quantize.known_inputs import (
    CONDITIONS,
    GUIDANCE,
    IMAGES,
    SIDE,
    TEXT_TOKENS,
    FluxInputs,
    PixArtInputs,
)
from svdquant_pack.svdq_core.quantize.layout_plan import plan_for

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights():
    """The demo's trained tiny FLUX."""
    return load_file(ROOT / "demo" / "models" / "demo_flux_bf16.safetensors")


@pytest.fixture(scope="module")
def inputs(weights):
    return FluxInputs(weights, list(weights), 0, CPU)


def linears(block):
    return {linear.host for linear in next(b for b in FLUX.blocks if b.host == block).linears}


ALL_TOKENS = SIDE**2 + TEXT_TOKENS
TOKENS_OF = {"img": SIDE**2, "txt": TEXT_TOKENS}


@pytest.mark.parametrize("block", ["double_blocks", "single_blocks"])
def test_every_layer_of_a_block_has_an_input(weights, inputs, block):
    known = inputs.of_block(f"{block}.1")
    assert {name.removeprefix(f"{block}.1.") for name in known} == linears(block)
    for name, statistics in known.items():
        count = CONDITIONS if name.endswith("lin") else IMAGES * TOKENS_OF.get(name.split(".")[-2][:3], ALL_TOKENS)
        assert statistics.tokens.shape == (count, weights[f"{name}.weight"].shape[1])
        assert statistics.tokens.isfinite().all()


def test_the_same_seed_draws_the_same(weights, inputs):
    again = FluxInputs(weights, list(weights), 0, CPU).of_block("single_blocks.0")
    other = FluxInputs(weights, list(weights), 1, CPU).of_block("single_blocks.0")
    first = inputs.of_block("single_blocks.0")["single_blocks.0.linear1"].tokens
    assert torch.equal(again["single_blocks.0.linear1"].tokens, first)
    assert not torch.equal(other["single_blocks.0.linear1"].tokens, first)


def test_channels_of_an_adaptive_norm_differ_as_their_scales_do(inputs):
    """Trained scales spread; of the standard-normal tokens that are drawn otherwise, all have mean square 1."""
    spread = inputs.of_block("double_blocks.0")["double_blocks.0.img_attn.qkv"].mean_square
    assert spread.max() > 10 * spread.min()


def test_smoothing_on_known_inputs_is_better_on_them(weights, inputs):
    name, spec = "double_blocks.0.img_mlp.0", QuantSpec(activations="w4a4")
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    statistics = inputs.of_block("double_blocks.0")[name]
    plan = plan_for(next(li for li in FLUX.blocks[0].linears if li.host == "img_mlp.0"), *weight.shape)
    errors = [
        output_error(quantize_layer(weight, bias, plan, spec, name, statistics=s)[0], weight, bias, statistics.tokens)
        for s in (statistics, None)
    ]
    assert errors[0] < 0.9 * errors[1]


def output_error(layer, weight, bias, x):
    exact = x @ weight.float().T + bias.float()
    return float((apply_layer(layer, x, "w4a4") - exact).norm() / exact.norm())


def test_the_mean_of_a_modulation_survives_its_rounding(weights, inputs):
    """Its input hardly varies: without the correction most of the rounding error is a constant offset."""
    name, spec = "single_blocks.0.modulation.lin", QuantSpec()
    weight, bias = weights[f"{name}.weight"].float(), weights[f"{name}.bias"].float()
    x = inputs.of_block("single_blocks.0")[name].tokens
    plan = plan_for(FLUX.blocks[1].linears[0], *weight.shape)
    errors = []
    for statistics in (inputs.of_block("single_blocks.0")[name], None):
        layer = quantize_layer(weight, bias, plan, spec, name, statistics=statistics)[0]
        part = layer.parts[0]
        rounded = dequantize_awq(part["qweight"], part["wscales"], part["wzeros"])
        difference = x @ (rounded - weight).T + (layer.bias.float() - bias)
        errors.append(float(difference.mean(dim=0).norm()))
    assert errors[0] < 0.1 * errors[1]


def test_blocks_out_of_order_see_the_same(weights, inputs):
    later = inputs.of_block("single_blocks.2")["single_blocks.2.linear2"].tokens
    inputs.of_block("double_blocks.0")
    assert torch.equal(inputs.of_block("single_blocks.2")["single_blocks.2.linear2"].tokens, later)


def test_what_is_not_finite_is_not_known(weights):
    broken = dict(weights)
    name = "double_blocks.1.img_mlp.0.weight"
    broken[name] = broken[name].clone()
    broken[name][3, 5] = float("nan")
    known = FluxInputs(broken, list(broken), 0, CPU)
    assert len(known.of_block("double_blocks.0")) == 10
    assert "double_blocks.1.img_mlp.0" in known.of_block("double_blocks.1")
    assert "double_blocks.1.img_mlp.2" not in known.of_block("double_blocks.1")


def hook_linears(model, kinds):
    """Record the input of every Linear in the model's blocks: name -> (M, K) of its first call."""
    seen = {}

    def keep(name, module, arguments):
        seen.setdefault(name, arguments[0].detach().flatten(0, -2).clone())

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.split(".")[0] in kinds:
            module.register_forward_pre_hook(partial(keep, name))
    return seen


CONDITIONED = ("mod.lin", "modulation.lin")  # these see many more conditions than there are images


def assert_same_inputs(known, seen, skipped):
    """Every Linear that the host ran, but for the skipped ones, had the input that was worked out."""
    found = {name: s.tokens for block in known.order for name, s in known.of_block(block).items()}
    compared = [name for name in seen if not name.endswith(skipped)]
    assert compared
    for name in compared:
        error = (found[name] - seen[name]).norm() / seen[name].norm()
        assert error < 1e-4, f"{name}: {error}"


@pytest.mark.host
def test_the_hosts_flux_sees_the_same(weights):
    import comfy.ldm.flux.model
    import comfy.ops

    weights = {n.replace("_norm.scale", "_norm.weight"): t.float() for n, t in weights.items()}
    model = comfy.ldm.flux.model.Flux(
        image_model="flux",
        in_channels=16,
        out_channels=16,
        patch_size=2,
        hidden_size=256,
        num_heads=2,
        depth=2,
        depth_single_blocks=3,
        axes_dim=[16, 56, 56],
        theta=10000,
        mlp_ratio=4.0,
        qkv_bias=True,
        guidance_embed=True,
        context_in_dim=128,
        vec_in_dim=64,
        txt_ids_dims=[],
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    model.load_state_dict(weights)
    seen = hook_linears(model, FluxInputs.kinds)
    known = FluxInputs(weights, list(weights), 0, CPU)
    inputs = known.draw()
    ids = torch.zeros(IMAGES, SIDE**2, 3)
    ids[:, :, 1] = torch.arange(SIDE).repeat_interleave(SIDE)
    ids[:, :, 2] = torch.arange(SIDE).repeat(SIDE)
    no_ids = torch.zeros(IMAGES, TEXT_TOKENS, 3)
    guidance = torch.full((IMAGES,), GUIDANCE)
    with torch.no_grad():
        model.forward_orig(inputs.noise, ids, inputs.text, no_ids, inputs.times / 1000, inputs.pooled, guidance)
    assert_same_inputs(known, seen, CONDITIONED)


@pytest.mark.host
def test_the_hosts_pixart_sees_the_same():
    import comfy.ldm.pixart.pixartms
    import comfy.ops

    model = comfy.ldm.pixart.pixartms.PixArtMS(
        hidden_size=144,
        depth=2,
        caption_channels=96,
        model_max_length=300,
        micro_condition=False,
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    g = torch.Generator().manual_seed(0)
    weights = {n: torch.randn(t.shape, generator=g) * 0.08 for n, t in model.state_dict().items()}
    model.load_state_dict(weights)
    seen = hook_linears(model, PixArtInputs.kinds)
    known = PixArtInputs(weights, list(weights), 0, CPU)
    inputs = known.draw()
    positions = comfy.ldm.pixart.pixartms.get_2d_sincos_pos_embed_torch(
        144, w=32, h=32, pe_interpolation=1, base_size=32
    )
    positions = positions.unflatten(0, (32, 32))[::2, ::2].flatten(0, 1)
    patches = inputs.noise.unflatten(-1, (4, 2, 2)).unflatten(1, (SIDE, SIDE)).permute(0, 3, 1, 4, 2, 5)
    with torch.no_grad():
        x = model.x_embedder(patches.reshape(IMAGES, 4, 2 * SIDE, 2 * SIDE)) + positions
        t0 = model.t_block(model.t_embedder(inputs.times, torch.float32))
        text = model.y_embedder(inputs.text[:, None], False).flatten(0, 2)[None]
        for block in model.blocks:
            x = block(x, text, t0)
    assert_same_inputs(known, seen, ("kv_linear",))
