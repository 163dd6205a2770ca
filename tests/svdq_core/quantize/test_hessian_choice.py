"""Hessians within a budget: narrow ones first, spread over the model, never more than allowed."""

from svdquant_pack.svdq_core.models import FLUX, PIXART
from svdquant_pack.svdq_core.quantize.hessian_choice import choose_hessians
from svdquant_pack.svdq_core.quantize.layout_plan import plan_layout

MIB = 1 << 20


def _plan(architecture, blocks, width):
    linears = architecture.linears(blocks)
    shapes = {name: (linear.shape[0] * width, linear.shape[1] * width) for name, linear in linears}
    return plan_layout(architecture, shapes, 0)


FLUX_DEV = _plan(FLUX, {"double_blocks": 19, "single_blocks": 38}, 3072)
SIGMA = _plan(PIXART, {"blocks": 28}, 1152)


def _bytes(chosen):
    return sum(4 * (b - a) ** 2 for spans in chosen.values() for a, b in spans)


def test_everything_fits_into_what_everything_takes():
    chosen = choose_hessians(FLUX_DEV, 1 << 40)
    modulations = 2 * 19 + 38
    assert len(chosen) == len(FLUX_DEV.layers) - modulations
    assert chosen["single_blocks.3.linear2"] == ((0, 3072), (3072, 15360))
    assert abs(_bytes(chosen) / 2**30 - 49.4) < 0.6
    assert abs(_bytes(choose_hessians(SIGMA, 1 << 40)) / 2**30 - 2.9) < 0.1


def test_the_budget_is_kept_and_used():
    for mib in (0, 30, 36, 100, 2048, 8192):
        chosen = choose_hessians(FLUX_DEV, mib * MIB)
        assert _bytes(chosen) <= mib * MIB
        assert _bytes(chosen) > mib * MIB - (36 if mib < 6000 else 576) * MIB


def test_narrow_ones_come_first_and_are_spread_over_the_model():
    chosen = choose_hessians(FLUX_DEV, 20 * 36 * MIB)
    assert len(chosen) == 20
    assert all(b - a == 3072 for spans in chosen.values() for a, b in spans)
    assert sum(name.startswith("single") for name in chosen) == 8
    assert {int(name.split(".")[1]) for name in chosen if name.startswith("single")} >= {0, 33}


def test_a_layer_that_cannot_be_quantized_gets_none():
    shapes = {"blocks.0.mlp.fc1": (4608, 1100), "blocks.0.attn.proj": (1152, 1152)}
    assert set(choose_hessians(plan_layout(PIXART, shapes, 0), 1 << 40)) == {"blocks.0.attn.proj"}
