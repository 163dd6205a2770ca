"""A calibration against a model: what fits is used, what does not is refused or said."""

import hashlib

import pytest
import torch

from svdquant_pack.svdq_core.errors import SVDQuantError
from svdquant_pack.svdq_core.models import FLUX
from svdquant_pack.svdq_core.quantize.calibrate import Collector
from svdquant_pack.svdq_core.quantize.calibration_file import Calibration
from svdquant_pack.svdq_core.quantize.calibration_fit import FittedCalibration, hash_file
from svdquant_pack.svdq_core.quantize.layout_plan import plan_layout

SHAPES = {
    "double_blocks.0.img_mod.lin": (6 * 128, 128),
    "double_blocks.0.img_attn.qkv": (3 * 128, 128),
    "double_blocks.0.img_mlp.2": (128, 512),
}


PLAN = plan_layout(FLUX, SHAPES, 0)


def record(tmp_path, tokens: dict, **metadata) -> Calibration:
    collector = Collector(tokens=64)
    for name, count in tokens.items():
        collector.add(name, torch.randn(count, SHAPES[name][1]))
    path = tmp_path / "mine.safetensors"
    collector.save(path, {"architecture": "flux", "source": "abc", **metadata})
    return Calibration(path)


def test_a_full_recording_has_nothing_to_say(tmp_path):
    file = record(tmp_path, dict.fromkeys(SHAPES, 2048))
    fitted = FittedCalibration(file, PLAN, "flux", "abc")
    assert set(fitted) == set(SHAPES) and len(fitted) == 3 and fitted.notes == []
    assert torch.equal(fitted["double_blocks.0.img_mlp.2"].tokens, file["double_blocks.0.img_mlp.2"].tokens)


def test_what_says_too_little_is_left_to_the_weights(tmp_path):
    counts = {"double_blocks.0.img_mod.lin": 4, "double_blocks.0.img_attn.qkv": 31}
    fitted = FittedCalibration(record(tmp_path, counts), PLAN, "flux")
    assert list(fitted) == ["double_blocks.0.img_mod.lin"]  # a few times and texts give the mean
    assert "double_blocks.0.img_attn.qkv" not in fitted and fitted.get("double_blocks.0.img_attn.qkv") is None
    with pytest.raises(KeyError):
        fitted["double_blocks.0.img_attn.qkv"]
    missing, few = fitted.notes
    assert "1 layers were not recorded" in missing and "double_blocks.0.img_mlp.2" in missing
    assert "1 layers have too few tokens" in few and "double_blocks.0.img_attn.qkv" in few


def test_few_tokens_are_used_and_said(tmp_path):
    fitted = FittedCalibration(record(tmp_path, dict.fromkeys(SHAPES, 600)), PLAN, "flux")
    assert set(fitted) == set(SHAPES)
    (note,) = fitted.notes
    assert "1 layers have fewer than 4 tokens a channel" in note and "double_blocks.0.img_mlp.2" in note


def test_another_model_of_the_same_sizes_is_said(tmp_path):
    file = record(tmp_path, dict.fromkeys(SHAPES, 2048))
    (note,) = FittedCalibration(file, PLAN, "flux", "other").notes
    assert note == "it was recorded on another model of the same sizes"


def test_another_model_is_refused(tmp_path):
    file = record(tmp_path, dict.fromkeys(SHAPES, 64))
    with pytest.raises(SVDQuantError, match=r"mine\.safetensors was recorded on another.*a flux, this is a pixart"):
        FittedCalibration(file, PLAN, "pixart")
    larger = {name: (2 * rows, 2 * columns) for name, (rows, columns) in SHAPES.items()}
    with pytest.raises(SVDQuantError, match=r"img_mod\.lin has 128 inputs there, this model has 256 inputs"):
        FittedCalibration(file, plan_layout(FLUX, larger, 0), "flux")
    fewer = {name: shape for name, shape in SHAPES.items() if "mlp" not in name}
    with pytest.raises(SVDQuantError, match=r"img_mlp\.2 has 512 inputs there, this model has no such layer"):
        FittedCalibration(file, plan_layout(FLUX, fewer, 0), "flux")


def test_the_hash_of_a_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc" * 700_000)
    assert hash_file(path) == hashlib.sha256(b"abc" * 700_000).hexdigest()
