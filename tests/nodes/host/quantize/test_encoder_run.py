"""Quantizing a text encoder: rounding by prompts, what is compared, and what is said where that cannot be done."""

from pathlib import Path

import pytest
from encoder_models import ENCODERS, draw_file, tiny
from safetensors.torch import save_file

from svdquant_pack.nodes.host.quantize.encoder_run import quantize_text_encoder, sentence
from svdquant_pack.svdq_core.checkpoint import Checkpoint
from svdquant_pack.svdq_core.errors import SVDQuantError
from svdquant_pack.svdq_core.quantize.prompts import HELD_OUT, RECORDED

TITLE = "Gemma 2 2B"


@pytest.fixture
def source(host, tmp_path):
    with tiny(ENCODERS[TITLE]):
        save_file(draw_file(ENCODERS[TITLE]), tmp_path / "gemma.safetensors")
        yield tmp_path / "gemma.safetensors"


def run(source: Path, name: str, *, group: int = 64, prompts=None, compare: bool = True):
    return quantize_text_encoder(source, source.with_name(name), group=group, prompts=prompts, compare=compare)


def mean(run) -> float:
    return sum(run.errors.values()) / len(run.errors)


def test_prompts_take_a_part_of_the_error(source):
    fast, best = run(source, "fast.safetensors"), run(source, "best.safetensors", prompts=RECORDED[:10])
    assert set(fast.errors) == set(HELD_OUT) and mean(best) < 0.7 * mean(fast)
    assert {r.rounding for r in best.outcome.reports} == {"gptq"} and all(r.measured for r in best.outcome.reports)
    metadata = Checkpoint(source.with_name("best.safetensors")).metadata
    assert metadata["svdquant_result"].strip() == sentence(best.errors)
    assert "GPTQ, 10 prompts" in metadata["svdquant_method"] and "4.50 bits" in metadata["svdquant_method"]
    assert sorted(p.name for p in source.parent.iterdir()) == sorted(
        [source.name, "fast.safetensors", "best.safetensors"]
    )


def test_groups_of_128_are_smaller(source):
    small, large = (
        run(source, "128.safetensors", group=128, compare=False),
        run(source, "64.safetensors", compare=False),
    )
    assert (small.bits, large.bits) == (4.25, 4.5) and not small.errors
    sizes = [source.with_name(f"{group}.safetensors").stat().st_size for group in (128, 64)]
    weights = sum(layer.weights for layer in small.plan.quantized)
    assert sizes[1] - sizes[0] == pytest.approx(weights / 4 / 8, rel=0.1)
    assert "svdquant_result" not in Checkpoint(source.with_name("64.safetensors")).metadata


def test_too_few_prompts(source):
    with pytest.raises(SVDQuantError, match="2 prompts are too few"):
        run(source, "x.safetensors", prompts=("a", "b"))


def test_an_encoder_that_comfyui_makes_no_conditioning_of(host, tmp_path):
    encoder = ENCODERS["Gemma 4 31B"]
    with tiny(encoder):
        save_file(draw_file(encoder), tmp_path / "gemma4.safetensors")
        found = run(tmp_path / "gemma4.safetensors", "x.safetensors")
        assert not found.errors and "no conditioning of this encoder" in found.note
        with pytest.raises(SVDQuantError, match=r"gemma4\.safetensors.*Choose method fast"):
            run(tmp_path / "gemma4.safetensors", "y.safetensors", prompts=RECORDED)


def test_an_interrupted_run_goes_on(source, monkeypatch):
    from svdquant_pack.nodes.host.quantize import encoder_run

    class StoppedError(Exception):
        pass

    count = 0

    def stop(*_):
        nonlocal count
        count += 1
        if count == 3:
            raise StoppedError

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(encoder_run.LayerProgress, "step", stop)
        run(source, "x.safetensors", compare=False)
    assert not source.with_name("x.safetensors").exists()
    assert run(source, "x.safetensors", compare=False).outcome.resumed >= 2
    run(source, "whole.safetensors", compare=False)
    whole, resumed = (source.with_name(name).read_bytes() for name in ("whole.safetensors", "x.safetensors"))
    assert whole == resumed


def test_the_text_is_said_in_one_line():
    assert sentence({"a": 0.1, "b": 0.3}) == (
        "relative error of the text, mean over tokens: 0.2000 (largest of 2 prompts: 0.3000)"
    )
