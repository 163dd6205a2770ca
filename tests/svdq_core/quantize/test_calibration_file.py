"""Calibration files: read as they were written, refused by name when damaged."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from svdquant_pack.svdq_core.errors import CheckpointError
from svdquant_pack.svdq_core.quantize.calibrate import Collector
from svdquant_pack.svdq_core.quantize.calibration_file import Calibration

K = 64


def _saved(tmp_path):
    collector = Collector(tokens=16, hessians={"blocks.0.fc": ((0, K),)})
    g = torch.Generator().manual_seed(0)
    for scale in (1, 2, 3):
        x = scale * torch.randn(2, 50, K, generator=g)
        collector.add("blocks.0.fc", x)
        collector.add("blocks.0.qkv", x[0])
    path = tmp_path / "calibration.safetensors"
    collector.save(path, {"model": "tiny"})
    return collector, path


def test_saved_and_read_again(tmp_path):
    collector, path = _saved(tmp_path)
    calibration = Calibration(path)
    assert sorted(calibration) == ["blocks.0.fc", "blocks.0.qkv"]
    assert len(calibration) == 2
    assert calibration.metadata["model"] == "tiny"
    assert calibration.counts("blocks.0.fc").to_list() == [300, 300, 3, 0]
    assert calibration.channels("blocks.0.fc") == K
    for name in calibration:
        found, expected = calibration[name], collector.statistics(name)
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.equal(found.mean_square, expected.mean_square)
        assert torch.equal(found.mean, expected.mean)
        assert torch.equal(found.absmax, expected.absmax)
        assert (found.count, found.hessian_count) == (expected.count, expected.hessian_count)
        assert found.hessians.keys() == expected.hessians.keys()
        assert all(torch.equal(hessian, expected.hessians[span]) for span, hessian in found.hessians.items())
    assert list(tmp_path.iterdir()) == [path]
    assert calibration.get("blocks.9.fc") is None and "blocks.9.fc" not in calibration


def test_files_from_before_means_were_recorded_are_read_and_go_on(tmp_path):
    _, path = _saved(tmp_path)
    tensors = {n: t for n, t in load_file(path).items() if not n.endswith(".mean")}
    with safe_open(path, "pt") as file:
        save_file(tensors, path, file.metadata())
    calibration = Calibration(path)
    assert calibration["blocks.0.fc"].mean is None
    assert calibration["blocks.0.fc"].columns(0, 32).to(torch.device("cpu")).mean is None
    collector = Collector.resume(calibration, tokens=16)
    collector.add("blocks.0.fc", torch.randn(50, K))
    collector.add("blocks.0.new", torch.randn(50, K))
    # a mean over the later calls alone would be taken for one of all
    assert collector.statistics("blocks.0.fc").mean is None and collector.statistics("blocks.0.fc").count == 350
    collector.save(path)
    again = Calibration(path)
    assert again["blocks.0.fc"].mean is None and again["blocks.0.new"].mean is not None


def test_means_go_on(tmp_path):
    _, path = _saved(tmp_path)
    before, x = Calibration(path)["blocks.0.fc"], torch.randn(50, K)
    collector = Collector.resume(Calibration(path), tokens=16)
    collector.add("blocks.0.fc", x)
    expected = (before.mean * 300 + x.sum(dim=0)) / 350
    torch.testing.assert_close(collector.statistics("blocks.0.fc").mean, expected)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncate", "not a readable calibration file"),
        ("empty", "the file is empty"),
        ("plain", "not a calibration file"),
        ("version", "calibration version '7', expected 1"),
        ("counts", "table of inputs is damaged"),
        ("missing", "the statistics of blocks.0.fc are incomplete"),
        ("shape", "the statistics of blocks.0.fc do not fit each other"),
        ("keys", "the statistics of blocks.0.fc do not fit each other"),
        ("nan", "blocks.0.fc.mean_square: the statistics are not finite"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, damage, message):
    _, path = _saved(tmp_path)
    tensors, metadata = load_file(path), dict(Calibration(path).metadata)
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        if damage == "plain":
            metadata = {}
        elif damage == "version":
            metadata["version"] = "7"
        elif damage == "counts":
            metadata["counts"] = json.dumps({"blocks.0.fc": "many"})
        elif damage == "missing":
            del tensors["blocks.0.fc.absmax"]
        elif damage == "shape":
            tensors["blocks.0.fc.absmax"] = torch.ones(3)
        elif damage == "keys":
            tensors["blocks.0.fc.keys"] = torch.ones(3, dtype=torch.float64)
        elif damage == "nan":
            tensors["blocks.0.fc.mean_square"][5] = float("nan")
        save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=message) as caught:
        Calibration(path)["blocks.0.fc"]
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such file"):
        Calibration(tmp_path / "nowhere.safetensors")
