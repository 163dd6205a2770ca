"""Calls taken apart: what is a tensor gets a place of its own, what is not is part of the key."""

import pytest
import torch

from svdquant_pack.nodes.host.graphs.inputs import StaticInputs, UnseenError, replace, split


def test_tensors_are_found_in_order_and_only_their_form_is_in_the_key():
    a, b = torch.zeros(2, 3), torch.ones(4, dtype=torch.float16)
    found = []
    key = split([a, {"guidance": 3.5, "more": [b, None]}], found)
    assert found[0] is a and found[1] is b and len(found) == 2
    assert split([a + 1, {"guidance": 3.5, "more": [b - 1, None]}], []) == key
    assert hash(key)


@pytest.mark.parametrize(
    "other",
    [
        [torch.zeros(2, 4), {"guidance": 3.5}],
        [torch.zeros(3, 2).T, {"guidance": 3.5}],
        [torch.zeros(2, 3, dtype=torch.float16), {"guidance": 3.5}],
        [torch.zeros(2, 3), {"guidance": 4.0}],
        [torch.zeros(2, 3), {"strength": 3.5}],
        [torch.zeros(2, 3), {}],
        [torch.zeros(2, 3), {"guidance": True}],
        [torch.zeros(2, 3), {"guidance": 1}],
    ],
)
def test_anything_else_is_another_key(other):
    key = split([torch.zeros(2, 3), {"guidance": 3.5}], [])
    assert split(other, []) != key
    assert split([True], []) != split([1], [])


@pytest.mark.parametrize("value", [lambda: 0, object(), {"a": [object()]}, {1, 2}])
def test_what_could_change_unseen_is_refused(value):
    with pytest.raises(UnseenError):
        split([value], [])


def test_replace_keeps_the_structure():
    call = [torch.zeros(2), {"a": (torch.ones(3), 5)}, None]
    other = replace(call, lambda t: t + 1)
    assert torch.equal(other[0], torch.ones(2)) and torch.equal(other[1]["a"][0], torch.full((3,), 2.0))
    assert other[1]["a"][1] == 5 and other[2] is None and torch.equal(call[0], torch.zeros(2))


def test_later_calls_land_in_the_same_places():
    first, second = [torch.randn(2, 3).T, {"a": torch.randn(4)}], [torch.randn(2, 3).T, {"a": torch.randn(4)}]
    static, found = StaticInputs(first, torch.device("cpu")), []
    places = [static.call[0].data_ptr(), static.call[1]["a"].data_ptr()]
    assert torch.equal(static.call[0], first[0]) and static.call[0].stride() == first[0].stride()
    split(second, found)
    static.fill(found)
    assert torch.equal(static.call[0], second[0]) and torch.equal(static.call[1]["a"], second[1]["a"])
    assert places == [static.call[0].data_ptr(), static.call[1]["a"].data_ptr()]
    assert first[0].data_ptr() not in places


def test_conditionings_in_main_memory_get_places_on_the_device():
    static = StaticInputs([torch.randn(2, 3), {"context": torch.randn(4)}], torch.device("meta"))
    assert static.call[0].device.type == static.call[1]["context"].device.type == "meta"
