"""The report's judgement of layers."""

from svdquant_pack.nodes.quantize_report import find_sensitive
from svdquant_pack.svdq_core.quantize import PartReport


def reports(errors: dict[str, float], scheme: str = "int4") -> list[PartReport]:
    return [PartReport(n, (0, 128), (0, 128), scheme, 16, "none", "nearest", e, True) for n, e in errors.items()]


def test_layers_far_above_the_median_stand_out_worst_first():
    errors = {"a": 0.02, "b": 0.021, "c": 0.019, "d": 0.07, "e": 0.2, "f": 0.058, "g": 0.02}
    assert find_sensitive(reports(errors)) == ["e", "d"]


def test_a_layer_that_lost_its_job_always_stands_out():
    assert find_sensitive(reports({"a": 0.4, "b": 0.45, "c": 0.6})) == ["c"]


def test_modulations_and_nothing_at_all():
    assert find_sensitive([]) == []
    assert find_sensitive(reports({"a": 0.01}) + reports({"b": 0.9}, "awq")) == []
