"""Which layers stay in 16 bits: named ones, the worst, those above a limit; never a silent miss."""

import pytest

from svdquant_pack.svdq_core.errors import SVDQuantError
from svdquant_pack.svdq_core.quantize.one_layer import PartReport
from svdquant_pack.svdq_core.quantize.overrides import Overrides, layer_errors

LAYERS = ["double_blocks.0.img_attn.qkv", "double_blocks.0.txt_mlp.2", "single_blocks.0.linear2"]


def report(layer, error, scheme="int4"):
    return PartReport(layer, (0, 128), (0, 128), scheme, 16, "none", "nearest", error, True)


REPORTS = [
    report(LAYERS[0], 0.05),
    report(LAYERS[1], 0.2),
    report(LAYERS[2], 0.02),
    report(LAYERS[2], 0.1),
    report("double_blocks.0.img_mod.lin", 0.9, "awq"),
]


def test_patterns_come_in_any_spelling():
    overrides = Overrides.parse(" double_blocks.0.*,\n*.linear2 double_blocks.0.*")
    assert overrides.keep == ("double_blocks.0.*", "*.linear2")
    overrides.check(LAYERS)
    assert [overrides.names(name) for name in LAYERS] == [True, True, True]
    assert not Overrides.parse("*.linear1").names(LAYERS[2])
    assert not Overrides.parse("").names(LAYERS[0])


def test_a_pattern_without_a_layer_is_refused():
    with pytest.raises(SVDQuantError, match=r"'transformer_blocks\.\*' matches no layer.*double_blocks\.0\.img_attn"):
        Overrides.parse("*.linear2 transformer_blocks.*").check(LAYERS)


@pytest.mark.parametrize("values", [{"worst": -1}, {"error_limit": -0.1}])
def test_negative_numbers_are_refused(values):
    with pytest.raises(SVDQuantError, match="0 \\(off\\) or more"):
        Overrides.parse("", **values)


def test_a_layer_is_as_bad_as_its_worst_part():
    assert layer_errors(REPORTS) == {LAYERS[0]: 0.05, LAYERS[1]: 0.2, LAYERS[2]: 0.1}


def test_the_worst_and_those_above_a_limit():
    assert Overrides().choose(REPORTS) == {}
    assert list(Overrides(worst=2).choose(REPORTS)) == [LAYERS[1], LAYERS[2]]
    assert list(Overrides(worst=99).choose(REPORTS)) == [LAYERS[1], LAYERS[2], LAYERS[0]]
    assert list(Overrides(error_limit=0.1).choose(REPORTS)) == [LAYERS[1]]
    both = Overrides(worst=2, error_limit=0.15).choose(REPORTS)
    assert "0.2000 is above 0.15" in both[LAYERS[1]] and "0.1000 is number 2" in both[LAYERS[2]]


def test_patterns_with_a_precision():
    found = Overrides.parse("a.*=int8, b.*=16 c.*=nvfp4")
    assert found.keep == ("b.*",) and found.precisions == (("a.*", "int8"), ("c.*", "nvfp4"))
    assert found.precision(["x", "a.0"], "int4") == "int8" and found.precision(["x"], "int4") == "int4"
    with pytest.raises(SVDQuantError, match=r"'a=fp8': expected int4, nvfp4, int8 or 16"):
        Overrides.parse("a=fp8")
    with pytest.raises(SVDQuantError, match="matches no layer"):
        found.check(["a.0", "b.0"])
