"""Weights by block: one on the device, and of files the next one read meanwhile."""

import threading

import pytest
import torch

from svdquant_pack.svdq_core.quantize.block_weights import BlockWeights

BLOCKS = {f"blocks.{i}.{name}": f"blocks.{i}" for i in range(4) for name in ("a", "b")}


class Source(dict):
    """Notes what is read, by whom."""

    reads_file = True

    def __init__(self):
        names = [*(f"{layer}.weight" for layer in BLOCKS), "outside.weight"]
        super().__init__({name: torch.full((2,), float(i)) for i, name in enumerate(names)})
        self.reads: list[tuple[str, int]] = []
        self.read, self.wait = threading.Condition(), threading.Event()

    def __getitem__(self, name):
        with self.read:
            self.reads.append((name, threading.get_ident()))
            self.read.notify_all()
        return super().__getitem__(name)

    def names_read(self) -> list[str]:
        with self.read:
            return [name for name, _ in self.reads]


def held(source) -> BlockWeights:
    return BlockWeights(source, torch.device("cpu"), BLOCKS)


def test_the_next_block_is_read_by_another_thread_and_once():
    source = Source()
    weights = held(source)
    assert weights["blocks.0.a.weight"].tolist() == [0, 0]
    with source.read:
        assert source.read.wait_for(lambda: len(source.reads) >= 3, timeout=10)
    assert sorted(source.names_read()) == ["blocks.0.a.weight", "blocks.1.a.weight", "blocks.1.b.weight"]
    assert {who for name, who in source.reads if name.startswith("blocks.1")} != {threading.get_ident()}
    for layer in BLOCKS:
        for _ in range(2):
            assert weights[f"{layer}.weight"].tolist() == dict.__getitem__(source, f"{layer}.weight").tolist()
    assert weights["outside.weight"].tolist() == [8, 8]
    weights.close()
    assert sorted(source.names_read()) == sorted(source), "each once"


def test_blocks_in_another_order():
    source = Source()
    weights = held(source)
    for block in (2, 0, 3, 1):
        assert weights[f"blocks.{block}.b.weight"].tolist() == [2 * block + 1] * 2
    weights.close()


def test_what_is_in_memory_is_not_read_ahead():
    source = Source()
    source.reads_file = False
    weights = held(source)
    assert weights["blocks.0.a.weight"] is dict.__getitem__(source, "blocks.0.a.weight")
    weights.close()
    assert source.names_read() == ["blocks.0.a.weight"] and len(weights) == 9 and "blocks.3.b.weight" in weights


def test_what_cannot_be_read_is_raised_where_it_is_asked_for():
    source = Source()
    weights = held(source)
    del source["blocks.1.a.weight"]
    assert weights["blocks.0.a.weight"].tolist() == [0, 0]
    with pytest.raises(KeyError):
        weights["blocks.1.a.weight"]
    weights.close()
