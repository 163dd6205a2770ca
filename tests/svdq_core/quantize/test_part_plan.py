"""LayerPlan tiles a weight, and names the sizes that the file layout cannot hold."""

import pytest

from svdquant_pack.svdq_core.errors import ArchitectureError
from svdquant_pack.svdq_core.quantize import LayerPlan, PartPlan


def test_stacks_tile_the_weight():
    LayerPlan.stack_rows((384, 512), 128).check(896, 128, "linear1")
    plan = LayerPlan.stack_columns(128, (128, 512), (False, True))
    plan.check(128, 640, "linear2")
    assert [p.columns for p in plan.parts] == [(0, 128), (128, 640)]
    assert [p.after_gelu for p in plan.parts] == [False, True]


@pytest.mark.parametrize(
    ("plan", "shape", "message"),
    [
        (LayerPlan.whole(128, 192), (128, 192), "b.0: 128 outputs and 192 inputs, expected multiples of 128 and 128"),
        (LayerPlan.whole(64, 128), (64, 128), "keep it in 16 bits"),
        (LayerPlan.modulation(6, 128), (6, 128), "multiples of 4 and 64"),
        (LayerPlan.whole(256, 128), (128, 128), "lies outside the weight of 128 x 128"),
        (LayerPlan.stack_rows((128,), 128), (256, 128), "do not tile"),
        (LayerPlan((PartPlan((0, 128), (0, 128)), PartPlan((128, 256), (128, 256)))), (256, 256), "do not tile"),
    ],
    ids=str,
)
def test_check_names_layer_and_size(plan, shape, message):
    with pytest.raises(ArchitectureError, match=message):
        plan.check(*shape, "b.0")
