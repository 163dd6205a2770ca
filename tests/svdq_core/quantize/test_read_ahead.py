"""Layers are read ahead in order, a few at a time, and what fails is raised where its turn comes."""

import threading

import pytest
import torch

from svdquant_pack.svdq_core.checkpoint.output import Output
from svdquant_pack.svdq_core.quantize.read_ahead import THREADS, read_ahead

NAMES = [f"layer{i}" for i in range(5 * THREADS)]


def test_all_come_in_order_and_few_are_in_memory():
    begun, lock = [], threading.Lock()

    def outputs_of(name):
        def make():
            with lock:
                begun.append(name)
            return [torch.full((2,), int(name[5:]))]

        return (Output(name, (2,), torch.int64, make),)

    for index, (output,) in enumerate(read_ahead(outputs_of, NAMES)):
        assert output.name == NAMES[index] and output.tensor().tolist() == [index, index]
        with lock:
            assert len(begun) <= index + 1 + THREADS


def test_what_cannot_be_read_is_raised_in_its_turn():
    def outputs_of(name):
        if name == NAMES[3]:
            raise OSError("damaged")
        return (Output(name, (1,), torch.int64, lambda: [torch.zeros(1, dtype=torch.int64)]),)

    seen = []
    with pytest.raises(OSError, match="damaged"):
        seen.extend(outputs[0].name for outputs in read_ahead(outputs_of, NAMES))
    assert seen == NAMES[:3]
