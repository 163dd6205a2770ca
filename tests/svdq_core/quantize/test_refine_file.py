"""Refining a model into a file: nearer on inputs it never saw, the same bits again and after a stop, ordinary."""

import pytest
import torch
from cheap_quantizing import make_cheap
from refined_blocks import BLOCKS, ResidualRuns, make_job, make_weights
from safetensors import safe_open
from safetensors.torch import load_file

from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.errors import SVDQuantError
from svdquant_pack.svdq_core.quantize import one_layer
from svdquant_pack.svdq_core.quantize.refine import RefineSpec
from svdquant_pack.svdq_core.quantize.refine_file import quantize_refined
from svdquant_pack.svdq_core.quantize.refine_layer import RefinedLinear
from svdquant_pack.svdq_core.quantize.to_file import quantize_to_file

SPEC = RefineSpec(steps=30, samples=1, held_out=4, rate=1e-3)


class StopError(Exception):
    pass


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    make_cheap(monkeypatch)
    monkeypatch.setattr(one_layer, "BEST_TURNS", 2)


@pytest.fixture(scope="module")
def weights():
    return make_weights()


def block_errors(path, weights):
    """Relative output errors of each block on other inputs than those of training, what came before refined, too."""
    layers, runs, errors = read_checkpoint(Checkpoint(path)).layers, ResidualRuns(weights, seed=5), []
    while (block := runs.advance()) is not None:
        own = {name: RefinedLinear(layer) for name, layer in layers.items() if name.startswith(block)}
        with torch.no_grad():
            runs.leave(own)
        off, whole = (torch.stack(x) for x in (runs.quantized, runs.dense))
        errors.append(float((off - whole).norm() / whole.norm()))
    return errors


def test_blocks_are_nearer_on_other_inputs(tmp_path, weights):
    for precision in ("int4", "nvfp4"):
        best, refined = tmp_path / f"{precision}-best.safetensors", tmp_path / f"{precision}.safetensors"
        quantize_to_file(make_job(best, weights, precision))
        outcome, reports = quantize_refined(
            make_job(refined, weights, precision), lambda _: ResidualRuns(weights), SPEC
        )
        before, after = block_errors(best, weights), block_errors(refined, weights)
        assert all(a < 0.94 * b for a, b in zip(after, before, strict=True)), (precision, before, after)
        assert len(outcome.reports) == 2 * BLOCKS
        assert [r.block for r in reports] == ["blocks.0", "blocks.1"] and all(r.kept for r in reports)
        kept, moved = load_file(best), load_file(refined)
        assert refined.stat().st_size < 1.02 * best.stat().st_size
        assert torch.equal(kept["outside"], moved["outside"])
        with safe_open(refined, "pt") as file:
            assert (
                "2 of 2 blocks" in file.metadata()["svdquant_refined"]
                and "steps 30" in file.metadata()["svdquant_refined"]
            )
        assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(f"{precision}.")) == [refined.name]


def test_again_and_after_a_stop_the_same_bytes(tmp_path, weights):
    """Stopped within the quantizer, in a block, and between two blocks."""
    whole, again, stopped = (tmp_path / f"{n}.safetensors" for n in ("whole", "again", "stopped"))
    quantize_refined(make_job(whole, weights), lambda _: ResidualRuns(weights), SPEC)
    quantize_refined(make_job(again, weights), lambda _: ResidualRuns(weights), SPEC)
    assert whole.read_bytes() == again.read_bytes()

    def stop_at(place):
        def step(done, total, name):
            assert total in (2 * BLOCKS, SPEC.steps * BLOCKS)
            if done == place:
                raise StopError

        return step

    stopped.write_bytes(b"an older file")
    run = {"runs": lambda _: ResidualRuns(weights), "spec": SPEC}
    with pytest.raises(StopError):
        quantize_refined(make_job(stopped, weights), on_layer=stop_at(2), **run)
    for place in (SPEC.steps, SPEC.steps + 7):
        with pytest.raises(StopError):
            quantize_refined(make_job(stopped, weights), on_layer=stop_at(0), on_step=stop_at(place), **run)
        assert stopped.read_bytes() == b"an older file"
    runs = ResidualRuns(weights)
    quantize_refined(make_job(stopped, weights), lambda _: runs, SPEC)
    assert runs.visited == [1]  # the first block was finished
    assert stopped.read_bytes() == whole.read_bytes()


def test_other_settings_start_over(tmp_path, weights):
    path = tmp_path / "x.safetensors"

    def stop(done, total, name):
        if done == SPEC.steps + 1:
            raise StopError

    with pytest.raises(StopError):
        quantize_refined(make_job(path, weights), lambda _: ResidualRuns(weights), SPEC, on_step=stop)
    runs = ResidualRuns(weights)
    quantize_refined(make_job(path, weights), lambda _: runs, RefineSpec(steps=3, samples=1, held_out=4))
    assert runs.visited == [0, 1]


def test_a_block_that_training_makes_worse_stays_as_it_was(tmp_path, weights):
    best, wild = tmp_path / "best.safetensors", tmp_path / "wild.safetensors"
    quantize_to_file(make_job(best, weights))
    spec = RefineSpec(steps=2, samples=1, held_out=4, rate=0.5)
    _, reports = quantize_refined(make_job(wild, weights), lambda _: ResidualRuns(weights), spec)
    assert not any(report.kept for report in reports) and all(report.after >= report.before for report in reports)
    kept, other = load_file(best), load_file(wild)
    assert kept.keys() == other.keys() and all(torch.equal(kept[name], other[name]) for name in kept)


def test_inputs_that_overflow_are_named(tmp_path, weights):
    runs = ResidualRuns(weights)
    runs.dense[0][0, 0] = runs.quantized[0][0, 0] = torch.inf
    with pytest.raises(SVDQuantError, match=r"blocks\.0: its outputs are not finite .* Record other"):
        quantize_refined(make_job(tmp_path / "x.safetensors", weights), lambda _: runs, SPEC)


def test_too_little_memory_is_said(tmp_path, weights):
    class Full(ResidualRuns):
        def output(self, index, linears):
            raise torch.OutOfMemoryError("full")

    asked = []
    job = make_job(tmp_path / "x.safetensors", weights, make_room=lambda: asked.append(1))
    with pytest.raises(SVDQuantError, match=r"blocks\.0: cpu has not enough memory"):
        quantize_refined(job, lambda _: Full(weights), SPEC)
    assert asked
