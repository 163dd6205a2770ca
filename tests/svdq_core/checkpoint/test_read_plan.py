"""Carrying out a plan: pieces in their order whatever finishes first, and an error that ends it."""

import threading
import time

import pytest
import torch
from checkpoint_files import TINY
from model_compare import differences

from svdquant_pack.svdq_core.checkpoint import Checkpoint, plan_checkpoint, read_plan
from svdquant_pack.svdq_core.checkpoint.read_plan import Plan
from svdquant_pack.svdq_core.errors import CheckpointError


@pytest.fixture
def threads(monkeypatch):
    monkeypatch.setattr(read_plan.torch, "get_num_threads", lambda: 4)


@pytest.mark.parametrize("precision", TINY)
def test_reading_several_at_a_time_gives_what_one_at_a_time_gives(precision, threads):
    together = plan_checkpoint(Checkpoint(TINY[precision])).read()
    pieces = dict(plan_checkpoint(Checkpoint(TINY[precision])).entries())
    assert list(together.layers) == [name for name in pieces if name in together.layers]
    one_by_one = plan_checkpoint(Checkpoint(TINY[precision])).read()
    one_by_one.layers = {name: pieces[name] for name in together.layers}
    one_by_one.plain = {name: pieces[name] for name in together.plain}
    assert differences(together, one_by_one) == []


def plan_of(readers):
    plan = plan_checkpoint(Checkpoint(TINY["int4"]))
    empty = Plan(plan.checkpoint, plan.architecture)
    empty.want(*plan.checkpoint)
    for index, read in enumerate(readers):
        empty.add(f"double_blocks.0.img_attn.norm.query_norm.{index}", "norm", read)
    return empty


def test_pieces_keep_their_order_and_overlap(threads):
    meeting = threading.Barrier(2, timeout=20)

    def slow():
        meeting.wait()
        time.sleep(0.2)
        return torch.ones(1)

    def fast():
        meeting.wait()
        return torch.zeros(1)

    model = plan_of([slow, fast]).read()
    assert [float(tensor) for tensor in model.plain.values()] == [1.0, 0.0]


def test_an_error_ends_the_reading(threads):
    begun = []

    def fails():
        raise CheckpointError("x.safetensors: damaged.")

    def counts():
        begun.append(1)
        time.sleep(0.01)
        return torch.zeros(1)

    with pytest.raises(CheckpointError, match=r"x\.safetensors: damaged\."):
        plan_of([fails, *[counts] * 200]).read()
    assert len(begun) < 100, "the other pieces were read all the same"
