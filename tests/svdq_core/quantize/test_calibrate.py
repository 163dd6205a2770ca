"""The collector: exact moments, a fair sample, an unchanged input, a file that comes back as it was."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from svdquant_pack.svdq_core.errors import CheckpointError
from svdquant_pack.svdq_core.quantize.calibrate import Calibration, Collector

K = 64


def _calls(count, rows=100, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(i + 1) * torch.randn(2, rows // 2, K, generator=g) for i in range(count)]


def test_moments_are_those_of_all_tokens():
    calls, collector = _calls(5), Collector(tokens=32, grams={"a": ((0, 64), (16, 48))})
    for x in calls:
        before = x.clone()
        collector.add("a", x)
        assert torch.equal(x, before)
    everything = torch.cat([x.flatten(0, 1) for x in calls])
    found = collector.statistics("a")
    assert found.count == found.gram_count == 500
    assert found.measured
    torch.testing.assert_close(found.mean_square, everything.square().mean(dim=0))
    assert torch.equal(found.absmax, everything.abs().amax(dim=0))
    torch.testing.assert_close(found.grams[0, 64], everything.T @ everything / 500)
    torch.testing.assert_close(found.grams[16, 48], found.grams[0, 64][16:48, 16:48])
    gram, count = found.columns(16, 48).gram()
    assert count == 500
    assert torch.equal(gram, found.grams[0, 64][16:48, 16:48])


def test_every_call_gets_its_share():
    collector, owner = Collector(tokens=400), {}
    for step in range(20):
        x = torch.full((300 if step % 2 else 1000, 4), float(step))
        collector.add("a", x)
    kept = collector.statistics("a").tokens
    assert kept.shape == (400, 4)
    owner = torch.bincount(kept[:, 0].long(), minlength=20)
    # calls of 1000 offer 400 tokens, calls of 300 all of theirs: expected shares 22.9 and 17.1
    assert (owner[0::2].float().mean() - 22.9).abs() < 3
    assert (owner[1::2].float().mean() - 17.1).abs() < 3
    assert owner.min() > 5


def test_tokens_come_from_the_calls_and_only_once():
    collector = Collector(tokens=64)
    rows = torch.arange(1000.0)[:, None].expand(1000, 4)
    for part in rows.split(90):
        collector.add("a", part)
    kept = collector.statistics("a").tokens[:, 0]
    assert len(kept.unique()) == 64


def test_same_seed_same_sample_whatever_else_is_recorded():
    def record(names, seed=0):
        collector = Collector(seed=seed, tokens=16)
        torch.manual_seed(len(names))
        for x in _calls(6):
            for name in names:
                collector.add(name, x)
        return collector.statistics("a").tokens

    assert torch.equal(record(["a"]), record(["b", "a"]))
    assert not torch.equal(record(["a"]), record(["a"], seed=1))


def test_tokens_that_are_not_finite_are_left_out_and_counted():
    collector = Collector()
    x = torch.ones(10, K)
    x[3, 5], x[7, 0] = float("nan"), float("inf")
    collector.add("a", x)
    collector.add("a", torch.full((2, K), float("nan")))
    found = collector.statistics("a")
    assert found.count == 8
    assert torch.equal(found.mean_square, torch.ones(K))
    assert torch.isfinite(found.tokens).all()
    assert collector.summary()["dropped_tokens"] == 4


def test_another_width_is_refused():
    collector = Collector()
    collector.add("a", torch.ones(3, K))
    with pytest.raises(ValueError, match="a: 32 channels, expected 64"):
        collector.add("a", torch.ones(3, 32))


def _saved(tmp_path):
    collector = Collector(tokens=16, grams={"blocks.0.fc": ((0, 64),)})
    for x in _calls(3):
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
    for name in calibration:
        found, expected = calibration[name], collector.statistics(name)
        assert torch.equal(found.tokens, expected.tokens.bfloat16())
        assert torch.equal(found.mean_square, expected.mean_square)
        assert torch.equal(found.absmax, expected.absmax)
        assert (found.count, found.gram_count) == (expected.count, expected.gram_count)
        assert found.grams.keys() == expected.grams.keys()
    assert list(tmp_path.iterdir()) == [path]
    assert calibration.get("blocks.9.fc") is None


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    collector, path = _saved(tmp_path)
    path.unlink()

    def fill_disk(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("svdquant_pack.svdq_core.quantize.calibrate.save_file", fill_disk)
    with pytest.raises(OSError, match="No space"):
        collector.save(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncate", "not a readable calibration file"),
        ("empty", "not a readable calibration file"),
        ("plain", "not a calibration file"),
        ("version", "calibration version 7, expected 1"),
        ("counts", "table of inputs is damaged"),
        ("missing", "the statistics of blocks.0.fc are incomplete"),
        ("shape", "the statistics of blocks.0.fc do not fit each other"),
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
        save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=message) as caught:
        Calibration(path)["blocks.0.fc"]
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a readable calibration file"):
        Calibration(tmp_path / "nowhere.safetensors")
