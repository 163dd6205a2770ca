"""The collector: exact moments, a fair sample, an unchanged input, a file that comes back as it was."""

import shutil

import pytest
import torch

from svdquant_pack.svdq_core.errors import SVDQuantError
from svdquant_pack.svdq_core.quantize.calibrate import Collector
from svdquant_pack.svdq_core.quantize.calibration_file import Calibration

K = 64


def _calls(count, rows=100, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(i + 1) * torch.randn(2, rows // 2, K, generator=g) for i in range(count)]


def test_moments_are_those_of_all_tokens():
    calls, collector = _calls(5), Collector(tokens=32, hessians={"a": ((0, 64), (16, 48))})
    for x in calls:
        before = x.clone()
        collector.add("a", x)
        assert torch.equal(x, before)
    everything = torch.cat([x.flatten(0, 1) for x in calls])
    found = collector.statistics("a")
    assert found.count == found.hessian_count == 500
    assert found.measured
    torch.testing.assert_close(found.mean_square, everything.square().mean(dim=0))
    torch.testing.assert_close(found.mean, everything.mean(dim=0))
    assert torch.equal(found.absmax, everything.abs().amax(dim=0))
    torch.testing.assert_close(found.hessians[0, 64], everything.T @ everything / 500)
    torch.testing.assert_close(found.hessians[16, 48], found.hessians[0, 64][16:48, 16:48])
    hessian, count = found.columns(16, 48).hessian()
    assert count == 500
    assert torch.equal(hessian, found.hessians[0, 64][16:48, 16:48])


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


def test_rows_of_a_video_come_from_all_frames_in_bounded_memory():
    frames, tokens = 8, 500
    collector = Collector(tokens=256)
    x = torch.arange(frames).float().repeat_interleave(tokens)[None, :, None].expand(1, frames * tokens, K)
    collector.add("a", x + 1)
    kept = collector.statistics("a").tokens
    counts = torch.bincount(kept[:, 0].long() - 1, minlength=frames)
    assert len(kept) == 256 and counts.min() > 10 and counts.sum() == 256
    assert collector.nbytes < 2 * 256 * K + 256 * 8 + 12 * K + 1


def test_inputs_with_few_rows():
    collector = Collector(tokens=32)
    collector.add("many", torch.randn(1, 4 * K, K))
    collector.add("few", torch.randn(1, 4 * K - 1, K))
    assert collector.scarce(4) == ["few"] and not collector.scarce(3)


def test_tokens_come_from_the_calls_and_only_once():
    collector = Collector(tokens=64)
    numbers = torch.arange(1000.0)
    rows = torch.stack((numbers // 100, numbers % 100), dim=1)  # exact in bfloat16
    for part in rows.split(90):
        collector.add("a", part)
    assert len(collector.statistics("a").tokens.unique(dim=0)) == 64


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


def test_a_call_that_fails_counts_for_nothing(monkeypatch):
    collector = Collector(tokens=16, hessians={"a": ((0, K),)})
    first, second = _calls(2)
    collector.add("a", first)
    before = collector.statistics("a")

    def out_of_memory(*args):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(collector, "_draw", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        collector.add("a", second)
    after = collector.statistics("a")
    assert after.count == before.count == after.hessian_count
    for one, other in ((before.tokens, after.tokens), (before.mean_square, after.mean_square)):
        assert torch.equal(one, other)
    assert torch.equal(before.absmax, after.absmax) and torch.equal(before.hessians[0, K], after.hessians[0, K])


def test_memory_does_not_grow_with_calls():
    collector = Collector(tokens=16, hessians={"a": ((0, K),)})
    sizes = []
    for x in _calls(40):
        collector.add("a", x)
        sizes.append(collector.nbytes)
    assert set(sizes) == {16 * (2 * K + 8) + 12 * K + 4 * K * K}


def _record(collector, calls):
    for x in calls:
        collector.add("blocks.0.fc", x)
        collector.add("blocks.0.qkv", x[0])


def _saved(tmp_path):
    collector = Collector(tokens=16, hessians={"blocks.0.fc": ((0, 64),)})
    _record(collector, _calls(3))
    path = tmp_path / "calibration.safetensors"
    collector.save(path, {"model": "tiny"})
    return collector, path


def test_a_recording_goes_on_from_its_file(tmp_path):
    collector, path = _saved(tmp_path)
    resumed, more = Collector.resume(Calibration(path), tokens=16), _calls(5, seed=1)
    _record(collector, more)
    _record(resumed, more)
    for name in collector.names():
        whole, found = collector.statistics(name), resumed.statistics(name)
        torch.testing.assert_close(found.mean_square, whole.mean_square)
        assert torch.equal(found.absmax, whole.absmax)
        assert (found.count, found.hessian_count) == (whole.count, whole.hessian_count)
        assert found.tokens.shape == whole.tokens.shape
        for span, hessian in whole.hessians.items():
            torch.testing.assert_close(found.hessians[span], hessian)
    assert resumed.summary() == collector.summary()


def test_a_resumed_sample_is_as_fair(tmp_path):
    path, rows = tmp_path / "c.safetensors", torch.arange(8.0)[:, None, None].expand(8, 50, 4)
    share = torch.zeros(8)
    for seed in range(20):
        collector = Collector(seed, tokens=64)
        for x in rows[:4]:
            collector.add("a", x)
        collector.save(path)
        collector = Collector.resume(Calibration(path), seed, tokens=64)
        for x in rows[4:]:
            collector.add("a", x)
        share += torch.bincount(collector.statistics("a").tokens[:, 0].long(), minlength=8) / 20
    # 8 of 64 each; of 20 draws the mean scatters by 0.6
    assert share.sum() == 64 and (share - 8).abs().max() < 2


def test_the_same_recording_gives_the_same_bytes(tmp_path):
    first = _saved(tmp_path)[1].read_bytes()
    assert _saved(tmp_path)[1].read_bytes() == first


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    collector, path = _saved(tmp_path)
    before = path.read_bytes()

    def fill_disk(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("svdquant_pack.svdq_core.quantize.calibrate.save_file", fill_disk)
    with pytest.raises(SVDQuantError, match="No space"):
        collector.save(path)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before


def test_a_full_disk_is_said_before_writing(tmp_path, monkeypatch):
    collector, path = _saved(tmp_path)
    path.unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(SVDQuantError, match=r"GiB are needed and 0\.00 GiB are free"):
        collector.save(path)
    assert list(tmp_path.iterdir()) == []
