"""Any model of ComfyUI: planned, run block by block, quantized; also a class that nobody has seen before."""

import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import pytest
import torch
from families.models import forward, load_dense
from sampling import relative_error
from torch import nn

from svdquant_pack.nodes.host.model.build import build_model
from svdquant_pack.nodes.host.model.dense_weights import DenseWeights
from svdquant_pack.nodes.host.quantize.plan_patcher import plan_patcher
from svdquant_pack.nodes.host.quantize.quantize_job import make_job
from svdquant_pack.svdq_core.apply_layer import dense_weight
from svdquant_pack.svdq_core.errors import SVDQuantError
from svdquant_pack.svdq_core.quantize.overrides import Overrides
from svdquant_pack.svdq_core.quantize.spec import QuantSpec
from svdquant_pack.svdq_core.quantize.to_file import quantize_to_file
from svdquant_pack.svdq_core.quantize.whole_model import quantize_model

SPEC = QuantSpec(rank=16, score_tokens=64)
CPU = torch.device("cpu")


class Novel(nn.Module):
    """A network with names of its own: gated attention without softmax, GELU behind half of a concatenation."""

    class Piece(nn.Module):
        def __init__(self, width: int, device, dtype, operations):
            super().__init__()
            make = {"device": device, "dtype": dtype}
            self.one = operations.Linear(width, width, **make)
            self.two = operations.Linear(width, width, bias=False, **make)
            self.back = operations.Linear(5 * width, width, **make)
            self.hidden = operations.Linear(width, 4 * width, **make)
            self.shade = operations.Linear(width, 3 * width, **make)
            self.listen = operations.Linear(96, width, **make)

        def forward(self, x, mood, words):
            shift, scale, gate = self.shade(nn.functional.silu(mood))[:, None].chunk(3, dim=-1)
            inner = nn.functional.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
            mixed = self.one(inner) * torch.sigmoid(self.two(inner)) + self.listen(words).mean(dim=1, keepdim=True)
            joined = torch.cat((mixed, nn.functional.gelu(self.hidden(inner), approximate="tanh")), dim=-1)
            return x + gate * self.back(joined)

    def __init__(self, width=256, depth=3, image_model=None, device=None, dtype=None, operations=None):
        super().__init__()
        self.dtype = dtype
        self.enter = operations.Conv2d(4, width, 2, 2, device=device, dtype=dtype)
        self.clock = operations.Linear(1, width, device=device, dtype=dtype)
        self.pieces = nn.ModuleList([Novel.Piece(width, device, dtype, operations) for _ in range(depth)])
        self.leave = operations.Linear(width, 16, device=device, dtype=dtype)

    def forward(self, x, timesteps, context=None, control=None, transformer_options=None, **kwargs):
        tokens = self.enter(x)
        height, width = tokens.shape[-2:]
        tokens, mood = tokens.flatten(2).transpose(1, 2), self.clock(timesteps[:, None].to(x) / 1000)
        for piece in self.pieces:
            tokens = piece(tokens, mood, context)
        out = self.leave(tokens).transpose(1, 2).unflatten(1, (4, 2, 2)).unflatten(-1, (height, width))
        return out.permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3)


class NovelConfig(comfy.supported_models.SD15):
    latent_format = comfy.latent_formats.SD15


@pytest.fixture(scope="module")
def novel():
    config = NovelConfig({"image_model": "novel"})
    config.unet_config = {"width": 256, "depth": 3, "dtype": torch.float32}
    config.custom_operations = comfy.ops.disable_weight_init
    with torch.inference_mode():
        model = comfy.model_base.BaseModel(config, device=CPU, unet_model=Novel)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.diffusion_model.parameters():
            scale = 0.02 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return comfy.model_patcher.ModelPatcher(model, CPU, CPU)


@pytest.fixture(autouse=True)
def inference_mode():
    """As ComfyUI runs nodes."""
    with torch.inference_mode():
        yield


def test_an_unknown_class_is_understood(host, novel):
    found = plan_patcher(novel)
    plan = found.plan
    assert found.request is not None and found.request.widths["text"] == 96
    assert list(plan.blocks) == ["pieces.0", "pieces.1", "pieces.2"]
    piece = {name.removeprefix("pieces.1."): layer for name, layer in plan.layers.items() if "pieces.1." in name}
    assert piece["two"].group == "pieces.1.one" and piece["hidden"].group == "pieces.1.one"
    assert [(p.columns, p.after_gelu) for p in piece["back"].parts.parts] == [((0, 256), False), ((256, 1280), True)]
    assert piece["shade"].is_modulation  # a fifth of the model
    assert piece["listen"].why
    assert plan_patcher(novel) is found


def test_an_unknown_class_is_quantized_into_a_file(host, novel, tmp_path):
    weights, found = DenseWeights(novel), plan_patcher(novel)
    for precision in ("int4", "nvfp4", "int8"):
        spec = QuantSpec(precision, rank=16, score_tokens=64)
        job = make_job(
            found, weights, tmp_path / f"{precision}.safetensors", spec=spec, overrides=Overrides(), calibration=None
        )
        outcome = quantize_to_file(job)
        assert outcome is not None
        assert all(report.measured for report in outcome.reports if report.scheme != "awq")
        assert {r.layer for r in outcome.reports} == set(found.plan.names)
        assert any("the prompt" in line or "multiple" in line for line in outcome.kept)
    first = (tmp_path / "int4.safetensors").read_bytes()
    again = make_job(
        found,
        weights,
        tmp_path / "int4.safetensors",
        spec=QuantSpec(rank=16, score_tokens=64),
        overrides=Overrides(),
        calibration=None,
    )
    quantize_to_file(again)
    assert (tmp_path / "int4.safetensors").read_bytes() == first


def test_layers_of_one_input_share_smoothing_and_projection(host, novel):
    found, weights = plan_patcher(novel), DenseWeights(novel)
    model, reports, _ = quantize_model(
        found.architecture,
        found.plan,
        weights,
        weights.names,
        spec=SPEC,
        device=CPU,
        inputs=found.inputs_of(novel.model, 0, CPU),
    )
    one, two = (model.layers[f"pieces.0.{name}"].parts[0] for name in ("one", "two"))
    assert torch.equal(one["smooth_factor"], two["smooth_factor"]) and torch.equal(one["proj_down"], two["proj_down"])
    assert model.layers["pieces.0.two"].bias is None and model.layers["pieces.0.one"].bias is not None
    for name, layer in model.layers.items():
        weight = weights[f"{name}.weight"]
        assert relative_error(dense_weight(layer), weight) < 0.14, name
    assert len(reports) == len(found.plan.quantized) + 3  # back is two parts


@pytest.mark.parametrize("name", ["wan_t2v", "hidream", "zimage"])
def test_quantized_models_draw_like_the_dense_ones(host, name):
    """Random weights forgive nothing: measured 0.03 to 0.12 at w4a16."""
    dense = load_dense(name)
    expected = forward(name, dense)
    found, weights = plan_patcher(dense), DenseWeights(dense)
    model, reports, kept = quantize_model(
        found.architecture,
        found.plan,
        weights,
        weights.names,
        spec=SPEC,
        device=CPU,
        inputs=found.inputs_of(dense.model, 0, CPU),
    )
    assert set(model.layers) == set(found.plan.names) and not kept
    assert sum(report.measured for report in reports) > 0.9 * sum(report.scheme != "awq" for report in reports)
    from families.models import detected_as
    from families.registry import FAMILIES

    with detected_as(FAMILIES[name]):
        ours = build_model(model, "w4a16")
    assert relative_error(forward(name, ours), expected) < 0.25


def test_a_quantized_model_is_refused(host):
    from families.models import load_quantized

    with pytest.raises(SVDQuantError, match="SVDQuant model already"):
        plan_patcher(load_quantized("flux1"))
