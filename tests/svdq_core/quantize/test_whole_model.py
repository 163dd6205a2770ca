"""A whole model: what is quantized, what stays, and that a user can stop it."""

import gc
from dataclasses import replace

import pytest
import torch
from dense_compare import dense_model
from tiny_files import DATA

from svdquant_pack.svdq_core.apply_layer import dense_weight
from svdquant_pack.svdq_core.blob import to_blob
from svdquant_pack.svdq_core.errors import SVDQuantError
from svdquant_pack.svdq_core.models import FLUX
from svdquant_pack.svdq_core.quantize import InputStatistics, QuantSpec, quantize_layer, whole_model
from svdquant_pack.svdq_core.quantize.layout_plan import plan_weights
from svdquant_pack.svdq_core.quantize.whole_model import quantize_layers, quantize_model

SPEC = QuantSpec(score_tokens=32, rank=16)


@pytest.fixture(scope="module")
def dense():
    """The dense weights of the tiny FLUX, under the host's names."""
    return dense_model(DATA / "flux_tiny_int4_r32.safetensors")


@pytest.fixture(scope="module")
def result(dense):
    done = []
    return *quantize_model(
        FLUX, plan_weights(FLUX, dense), dense, list(dense), spec=SPEC, device=torch.device("cpu"), on_layer=done.append
    ), done


def test_every_linear_of_the_blocks_is_quantized(dense, result):
    model, reports, kept, done = result
    assert len(model.layers) == len(done) == 13
    assert set(done) == set(model.layers)
    assert not kept
    assert len(reports) == 15  # two layers have two parts
    assert {r.scheme for r in reports} == {"int4", "awq"}


def test_everything_else_is_taken_over(dense, result):
    model = result[0]
    expected = {n for n in dense if n.rpartition(".")[0] not in model.layers}
    assert set(model.plain) == expected
    assert all(torch.equal(model.plain[n], dense[n].to(SPEC.scale_dtype)) for n in expected)


def test_composite_layers_keep_their_parts(result):
    layers = result[0].layers
    linear1, linear2 = layers["single_blocks.0.linear1"], layers["single_blocks.0.linear2"]
    assert [p.rows for p in linear1.parts] == [(0, 768), (768, 1792)]
    assert [p.columns for p in linear2.parts] == [(0, 256), (256, 1280)]
    assert [p.act_unsigned for p in linear2.parts] == [False, True]


def test_weights_come_close(dense, result):
    for name, layer in result[0].layers.items():
        weight = dense[f"{name}.weight"]
        # the paper's 4 bits with a scale for each 64 weights leave about a tenth on Gaussian weights
        assert (dense_weight(layer) - weight).norm() < 0.13 * weight.norm(), name


@pytest.mark.parametrize("method", ["fast", "best"])
def test_the_memory_of_a_layer_is_free_at_once(dense, method):
    """The garbage collector knows nothing of a GPU's memory, and may come by after gigabytes."""
    generator = torch.Generator().manual_seed(1)
    calibration = None
    if method == "best":
        widths = {name.removesuffix(".weight"): t.shape[-1] for name, t in dense.items() if name.endswith(".weight")}
        tokens = {width: torch.randn(64, width, generator=generator) for width in set(widths.values())}
        calibration = {name: InputStatistics.from_tokens(tokens[width]) for name, width in widths.items()}
    layers = quantize_layers(
        plan_weights(FLUX, dense), dense, replace(SPEC, method=method), torch.device("cpu"), calibration=calibration
    )
    gc.collect()
    gc.freeze()  # what all other tests have left is not looked through again for each layer
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for finished in layers:
            gc.collect()
            left = [tuple(o.shape) for o in gc.garbage if isinstance(o, torch.Tensor)]
            gc.garbage.clear()
            assert not left, finished.name
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.unfreeze()
        gc.enable()


def test_stopping_ends_the_run_at_once(dense):
    seen = []

    def stop(name):
        seen.append(name)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_model(
            FLUX, plan_weights(FLUX, dense), dense, list(dense), spec=SPEC, device=torch.device("cpu"), on_layer=stop
        )
    assert len(seen) == 1


def test_a_layer_can_be_left_in_the_middle(dense):
    seen = []

    def stop():
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(quantize_layers(plan_weights(FLUX, dense), dense, SPEC, torch.device("cpu"), poll=stop))
    assert len(seen) == 3


def test_no_memory_is_no_end(dense, monkeypatch):
    """What runs on after room was made is the same, bit for bit."""
    calls, freed = [], []

    def short_of_memory(*args, **more):
        calls.append(args[4])
        if len(calls) in (2, 5):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return quantize_layer(*args, **more)

    monkeypatch.setattr(whole_model, "quantize_layer", short_of_memory)
    found = quantize_layers(
        plan_weights(FLUX, dense), dense, SPEC, torch.device("cpu"), make_room=lambda: freed.append(len(calls))
    )
    found = {f.name: f.layer for f in found}
    assert freed == [2, 5] and len(calls) == 13 + 2
    monkeypatch.undo()
    expected = quantize_model(
        FLUX, plan_weights(FLUX, dense), dense, list(dense), spec=SPEC, device=torch.device("cpu")
    )[0].layers
    assert all(torch.equal(to_blob(found[name])[0], to_blob(expected[name])[0]) for name in expected)


def test_a_broken_weight_is_named(dense):
    broken = dict(dense)
    broken["double_blocks.0.img_attn.proj.weight"] = dense["double_blocks.0.img_attn.proj.weight"].clone()
    broken["double_blocks.0.img_attn.proj.weight"][3, 5] = float("nan")
    with pytest.raises(SVDQuantError, match=r"double_blocks\.0\.img_attn\.proj: the weight holds NaN"):
        quantize_model(FLUX, plan_weights(FLUX, broken), broken, list(broken), spec=SPEC, device=torch.device("cpu"))


def test_a_calibration_comes_before_what_the_weights_say(dense, result):
    name = "double_blocks.0.img_mlp.0"
    tokens = torch.randn(64, dense[f"{name}.weight"].shape[1], generator=torch.Generator().manual_seed(0))
    tokens[:, 17] *= 40
    calibration = {name: InputStatistics.from_tokens(tokens)}
    model = quantize_model(
        FLUX,
        plan_weights(FLUX, dense),
        dense,
        list(dense),
        spec=SPEC,
        device=torch.device("cpu"),
        calibration=calibration,
    )[0]
    factor = model.layers[name].parts[0]["smooth_factor"].float()
    assert factor[17] > 4 * factor.median()
    other = "double_blocks.0.img_attn.qkv"
    assert torch.equal(to_blob(model.layers[other])[0], to_blob(result[0].layers[other])[0])


def test_best_needs_inputs(dense):
    with pytest.raises(SVDQuantError, match="method best needs"):
        quantize_model(
            FLUX,
            plan_weights(FLUX, dense),
            dense,
            list(dense),
            spec=replace(SPEC, method="best"),
            device=torch.device("cpu"),
        )
