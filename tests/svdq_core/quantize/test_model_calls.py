"""Calls of a whole model in a calibration file: which are kept, and that they come back as they were."""

import pytest
import torch

from svdquant_pack.svdq_core.errors import CheckpointError, SVDQuantError
from svdquant_pack.svdq_core.quantize import model_calls
from svdquant_pack.svdq_core.quantize.calibrate import Collector
from svdquant_pack.svdq_core.quantize.calibration_file import Calibration
from svdquant_pack.svdq_core.quantize.model_calls import KEPT, KEY, ModelCalls, read_calls


def call(number):
    return {
        "x": torch.full((1, 4), float(number)),
        "t": torch.tensor([0.5]),
        "context": torch.randn(2, 3).bfloat16(),
        "nested": [torch.arange(3), (1, "word", None, True, 0.25), {"size": torch.ones(2)}],
    }


def saved(path, calls, **metadata):
    collector = Collector()
    collector.add("layer", torch.randn(40, 8))
    collector.save(path, {**calls.metadata(), **metadata}, calls.tensors())
    return path


def same(left, right):
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(value, right[key]) for key, value in left.items())
    return type(left) is type(right) and left == right


def test_they_come_back_as_they_were_beside_the_statistics(tmp_path):
    calls, given = ModelCalls(), [call(number) for number in range(3)]
    for arguments in given:
        calls.offer(arguments)
    path = saved(tmp_path / "x.safetensors", calls)
    found = sorted(read_calls(path), key=lambda arguments: float(arguments["x"][0, 0]))
    assert len(found) == 3 and all(map(same, found, given))
    assert list(Calibration(path)) == ["layer"] and Calibration(path)["layer"].tokens.shape == (40, 8)


def test_a_call_is_copied():
    calls, x = ModelCalls(), torch.zeros(2)
    calls.offer({"x": x})
    x += 1
    assert torch.equal(calls.calls()[0]["x"], torch.zeros(2))


def test_each_call_has_the_same_chance_however_many_there_are(tmp_path):
    calls, whole = ModelCalls(), ModelCalls()
    for number in range(10 * KEPT):
        whole.offer({"x": torch.tensor(number)})
        calls.offer({"x": torch.tensor(number)})
        if number == 3 * KEPT:
            calls = ModelCalls.read(saved(tmp_path / "x.safetensors", calls))
    kept = [int(arguments["x"]) for arguments in whole.calls()]
    assert len(kept) == KEPT and kept == [int(arguments["x"]) for arguments in calls.calls()]
    assert 2 < sum(number < 5 * KEPT for number in kept) < KEPT - 2


def test_what_no_file_holds_is_not_kept(monkeypatch):
    calls = ModelCalls()
    calls.offer({"x": torch.zeros(1), "control": object()})
    calls.offer({"x": torch.zeros(1, device="meta")})
    monkeypatch.setattr(model_calls, "LARGEST", 100)
    calls.offer({"x": torch.zeros(100)})
    assert len(calls) == 0 and calls.offered == 3


def test_files_without_and_damaged_ones_are_told_apart(tmp_path):
    with pytest.raises(SVDQuantError, match=r"older\.safetensors holds no calls of the whole model.*Record it again"):
        read_calls(saved(tmp_path / "older.safetensors", ModelCalls()))
    calls = ModelCalls()
    calls.offer(call(0))
    for number, text in enumerate(("{", "[]", '{"offered": 1, "calls": [[0.5, {"tensor": 9}]]}', '{"offered": 1}')):
        path = saved(tmp_path / f"{number}.safetensors", calls, **{KEY: text})
        with pytest.raises(CheckpointError, match="Record it again"):
            read_calls(path)
