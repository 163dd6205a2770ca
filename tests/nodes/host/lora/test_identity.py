"""Equal patches are known as equal by their content, and nothing is kept of those that are gone."""

import gc
import sys

import comfy.lora
import torch
from lora_files import diffusers_lora

from svdquant_pack.nodes.host.lora import identity as identity_file
from svdquant_pack.nodes.host.lora.identity import content_of, identity_of, is_finite


def test_equal_tensors_are_known_as_equal():
    a = torch.randn(3, 200)
    b, c = a.clone(), a.clone()
    c[2, 199] += 1
    assert content_of(a) == content_of(b)
    assert content_of(c) != content_of(a)
    d = torch.zeros(4).to(torch.float8_e4m3fn)
    assert content_of(d) == content_of(d.clone())
    assert content_of(d) != content_of(torch.zeros(4))
    assert content_of(torch.zeros(0, 3)) != content_of(torch.zeros(0, 2))
    assert content_of(torch.ones(())) == content_of(torch.ones(()))
    assert content_of(a.T) == content_of(a.T.contiguous())


def test_a_tensor_that_is_gone_is_not_mistaken_for_a_new_one():
    a = torch.randn(3, 200)
    first = content_of(a)
    del a
    assert content_of(torch.randn(3, 200)) != first


def test_patches_of_equal_content_are_equal():
    def adapter():
        lora = comfy.lora.load_lora(diffusers_lora(5), {"transformer.proj_out": "w"}, log_missing=False)
        return lora["w"]

    other = diffusers_lora(6)
    assert identity_of(adapter()) == identity_of(adapter())
    lora = comfy.lora.load_lora(other, {"transformer.proj_out": "w"}, log_missing=False)
    assert identity_of(adapter()) != identity_of(lora["w"])


def test_hundreds_of_loras_leave_nothing_behind():
    """The room that content takes is on the tensors; no table of the module grows."""

    def see(count: int) -> None:
        for i in range(count):
            content_of(torch.full((16, 4), float(i)))

    see(10)
    gc.collect()
    before = {name: sys.getsizeof(value) for name, value in vars(identity_file).items()}
    see(500)
    gc.collect()
    assert {name: sys.getsizeof(value) for name, value in vars(identity_file).items()} == before


def test_large_tensors_are_known_as_themselves(monkeypatch):
    monkeypatch.setattr(identity_file, "LARGEST_DIGESTED", 64)
    a = torch.zeros(17)
    assert content_of(a) == content_of(a) != content_of(a.clone())


def test_what_is_not_finite_is_seen_in_every_dtype():
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2):
        sound = torch.ones(3, 5).to(dtype)
        assert is_finite(sound)
        broken = torch.ones(3, 5)
        broken[2, 4] = float("nan")
        assert not is_finite(broken.to(dtype)), dtype
    assert not is_finite(torch.tensor([1.0, float("-inf")]))
    assert is_finite(torch.zeros(0, 4)) and is_finite(torch.tensor([1, 2]))
