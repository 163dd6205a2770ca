"""Every kernel is compiled for every GPU, or for one of its kind where the code is the same."""

import pytest
from compile_plan import COMPILED, PRODUCTS, complete, left_to_others, stand_in
from cross_compile import _cases


def test_the_ends_of_each_kind_stand_for_themselves():
    kinds: dict[tuple, list[str]] = {}
    for row in COMPILED:
        kinds.setdefault((row.target.backend, row.target.warp_size), []).append(row.name)
    assert [names[0] for names in kinds.values()] == ["sm_80", "gfx90a", "gfx1030"]
    assert [row.name for row in COMPILED if stand_in(row) is row] == [
        name for names in kinds.values() for name in dict.fromkeys((names[0], names[-1]))
    ]
    for names in kinds.values():
        assert {stand_in(row).name for row in COMPILED if row.name in names} == {names[0], names[-1]}


@pytest.mark.parametrize("gpu", COMPILED, ids=lambda row: row.name)
def test_what_is_left_to_another_is_the_same_there_and_has_no_product(gpu):
    own, theirs = _cases(gpu), _cases(stand_in(gpu))
    left = left_to_others(gpu, _cases)
    assert bool(left) == (stand_in(gpu) is not gpu)
    assert not set(left) & set(left_to_others(stand_in(gpu), _cases)), "nobody compiles it"
    for name in left:
        assert own[name] == theirs[name] and own[name][0] not in PRODUCTS


def test_reports_are_made_whole():
    ours = {"kernels": {"gemm": 1}, "left": ["gelu", "gone"], "stand_in": "old"}
    old = {"kernels": {"gemm": 2, "gelu": 3}, "left": [], "stand_in": "old"}
    broken = {"error": "it broke off"}
    whole = complete({"new": ours, "old": old, "broken": broken})
    assert whole["new"]["kernels"] == {"gemm": 1, "gelu": 3}
    assert whole["old"] == old and whole["broken"] == broken
    assert complete({"new": ours, "old": broken})["new"]["kernels"] == {"gemm": 1}
