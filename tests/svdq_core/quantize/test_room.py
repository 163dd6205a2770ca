"""Out of memory: once more after making room, then on the CPU, then a sentence."""

import pytest
import torch

from svdquant_pack.svdq_core.errors import SVDQuantError
from svdquant_pack.svdq_core.quantize.room import attempt

CPU, CARD = torch.device("cpu"), torch.device("meta")  # any device that is not the CPU


def failing(times):
    """An action that has no room the first few times, and the devices that it was tried on."""
    tried = []

    def action(device):
        tried.append(device)
        if len(tried) <= times:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    return action, tried


@pytest.mark.parametrize(("times", "expected"), [(0, [CARD]), (1, [CARD, CARD]), (2, [CARD, CARD, CPU])])
def test_it_goes_on(times, expected):
    action, tried = failing(times)
    freed = []
    assert attempt(action, CARD, lambda: freed.append(len(tried)), "blocks.0.attn.qkv") == "done"
    assert tried == expected
    assert freed == ([1] if times else [])


@pytest.mark.parametrize(("device", "anywhere"), [(CPU, True), (CARD, False)])
def test_it_says_what_has_no_room(device, anywhere):
    action, tried = failing(9)
    with pytest.raises(SVDQuantError, match=r"blocks\.0: \w+ has not enough memory.*finished layers are kept"):
        attempt(action, device, lambda: None, "blocks.0", anywhere)
    assert tried == [device, device]


def test_not_even_the_processor_has_room():
    action, tried = failing(9)
    with pytest.raises(SVDQuantError, match="has not enough memory"):
        attempt(action, CARD, lambda: None, "blocks.0")
    assert tried == [CARD, CARD, CPU]


def test_other_errors_pass_through():
    def action(device):
        raise KeyError("other")

    with pytest.raises(KeyError):
        attempt(action, CARD, lambda: None, "x")


def test_what_a_failed_try_held_is_free_before_the_next():
    import weakref

    held = []

    def action(device):
        if not held:
            tensor = torch.zeros(3)
            held.append(weakref.ref(tensor))
            raise torch.OutOfMemoryError("no room")
        assert held[0]() is None
        return "done"

    assert attempt(action, CARD, lambda: None, "x") == "done"
