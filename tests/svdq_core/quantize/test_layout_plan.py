"""Plans of described families: parts and groups as their files have them, in the order in which blocks run."""

import pytest

from svdquant_pack.svdq_core.models import ARCHITECTURES
from svdquant_pack.svdq_core.quantize.layout_plan import NOT_IN_A_STEP, ONE_ROW, plan_layout, spare_idle_layers
from svdquant_pack.svdq_core.quantize.traced_layers import TracedLinear, TracedModel

FLUX, Z_IMAGE, PIXART = (ARCHITECTURES[name] for name in ("flux", "zimage", "pixart"))


def shapes_of(architecture, width: int, blocks: int = 1) -> dict[str, tuple[int, int]]:
    """Of all Linears of as many blocks of each kind; relative sizes stand in the description."""
    counts = {block.host: blocks for block in architecture.blocks}
    return {
        name: (int(width * linear.relative_size[0]), int(width * linear.relative_size[1]))
        for name, linear in architecture.linears(counts)
    }


def test_flux_is_what_its_files_hold():
    plan = plan_layout(FLUX, shapes_of(FLUX, 256), 10**7)
    joined = plan["single_blocks.0.linear2"].parts
    assert joined is not None
    assert [(part.columns, part.after_gelu) for part in joined.parts] == [((0, 256), False), ((256, 1280), True)]
    split = plan["single_blocks.0.linear1"].parts
    assert split is not None and [part.rows for part in split.parts] == [(0, 768), (768, 1792)]
    assert plan["double_blocks.0.img_mod.lin"].is_modulation
    assert not plan.reasons()


def test_linears_of_one_source_layer_are_a_group():
    plan = plan_layout(Z_IMAGE, shapes_of(Z_IMAGE, 384), 10**7)
    assert plan["layers.0.feed_forward.w1"].group == plan["layers.0.feed_forward.w3"].group
    assert plan["layers.0.feed_forward.w2"].group == "layers.0.feed_forward.w2"


def test_what_a_family_keeps_stays():
    h3 = ARCHITECTURES["minimax_h3"]
    plan = plan_layout(h3, shapes_of(h3, 384), 10**7)
    refiner = [layer for layer in plan if layer.block.startswith("token_refiner")]
    assert refiner and all("files of this family" in layer.why for layer in refiner)


def test_sizes_that_the_layout_cannot_hold_stay():
    shapes = shapes_of(PIXART, 128) | {"blocks.0.mlp.fc1": (200, 128)}
    plan = plan_layout(PIXART, shapes, 10**7)
    assert plan["blocks.0.mlp.fc1"].parts is None and "multiples of 128" in plan["blocks.0.mlp.fc1"].why


@pytest.mark.parametrize(
    ("change", "why"),
    [({"calls": 0}, NOT_IN_A_STEP), ({"calls": 1}, ONE_ROW), ({"calls": 1, "grows_with_image": True}, "")],
    ids=["idle", "one row", "runs"],
)
def test_what_a_step_hardly_runs_stays(change, why):
    plan = plan_layout(Z_IMAGE, shapes_of(Z_IMAGE, 384), 10**7)
    seen = TracedLinear("layers.0.feed_forward.w2", 384, 1024, "layers.0", "layers", **change)
    assert spare_idle_layers(plan, TracedModel("Z-Image", 10**7, (seen,)))["layers.0.feed_forward.w2"].why == why


def test_blocks_stand_in_the_order_in_which_they_run():
    plan = plan_layout(Z_IMAGE, shapes_of(Z_IMAGE, 384, 2), 10**7)
    order = ["context_refiner.1", "layers.1", "noise_refiner.0", "layers.0"]
    seen = tuple(TracedLinear(f"{block}.x", 256, 256, block, "kind", calls=1) for block in order)
    found = spare_idle_layers(plan, TracedModel("Z-Image", 10**7, seen))
    assert list(found.blocks)[:4] == order and set(found.layers) == set(plan.layers)
