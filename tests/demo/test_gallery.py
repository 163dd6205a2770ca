"""The checks on the pictures can fail, each for its own reason."""

import numpy as np
import pytest

from svdquant_pack.demo import gallery
from svdquant_pack.demo.client import Client
from svdquant_pack.demo.scenes import read_caption
from svdquant_pack.demo.verdict import Verdict

FILES = {"int4": "a.safetensors", "nvfp4": "b.safetensors"}


@pytest.fixture
def stand_in(fake_server):
    made = fake_server()
    made.precisions = {"a.safetensors": "int4", "b.safetensors": "nvfp4"}
    return made


def checks_of(stand_in, judge):
    drawn = gallery.draw(Client(stand_in), FILES, judge, lambda line: None)
    return {check.statement: check.passed for check in drawn.checks}


def test_good_pictures_pass(stand_in, lenient):
    assert all(checks_of(stand_in, lenient).values())


def test_figures_are_against_bf16_with_the_same_lora(stand_in, lenient):
    drawn = gallery.draw(Client(stand_in), FILES, lenient, lambda line: None)
    for (subject, column, has_lora), tile in drawn.tiles.items():
        reference = drawn.tiles[subject, gallery.COLUMNS[0], has_lora].outcome
        assert (tile.error == 0) == column.is_reference
        expected = (tile.outcome.latent - reference.latent).norm() / reference.latent.norm()
        assert tile.error == pytest.approx(float(expected), rel=1e-5)
        assert np.isinf(tile.psnr) == column.is_reference


def test_a_quantized_model_that_draws_something_else_fails(stand_in, lenient, monkeypatch):
    good = stand_in._latent
    monkeypatch.setattr(stand_in, "_latent", lambda node, how, kinds: good(node, how, kinds) + (3 if how else 0))
    failed = {statement for statement, passed in checks_of(stand_in, lenient).items() if not passed}
    assert "SVDQuant's pictures are nearer to BF16 than BF16 with another seed" in failed


def test_a_lora_that_does_nothing_fails(stand_in, lenient, monkeypatch):
    good = stand_in._latent

    def ignores_lora(node, how, kinds):
        return good({k: v for k, v in node.items() if k != "lora"} if how else node, how, kinds)

    monkeypatch.setattr(stand_in, "_latent", ignores_lora)
    assert not checks_of(stand_in, lenient)["The LoRA does to the quantized model what it does to BF16"]


def test_subjects_show_one_two_and_three_objects():
    assert [len(read_caption(subject.caption).objects) for subject in gallery.SUBJECTS] == [3, 2, 1]


def test_a_wrong_caption_fails_except_in_naive_columns(stand_in):
    """The stand-in's naive pictures are the ones that the reader refuses here."""
    naive = [column for column in gallery.COLUMNS if column.file == "naive"]
    assert [column.bits for column in naive] == [4, 3]

    def strict(image, caption):
        return Verdict(("shape",))

    drawn = gallery.draw(Client(stand_in), FILES, strict, lambda line: None)
    (check,) = [check for check in drawn.checks if "finds every caption right" in check.statement]
    assert not check.passed and "W4A8 with LoRA" in check.detail and "Naive" not in check.detail
    assert check.detail.startswith(f"0 of {2 * 4 * len(gallery.SUBJECTS)} right")


def test_naive_rounding_that_is_better_fails(stand_in, lenient, monkeypatch):
    good = stand_in._latent

    def better(node, how, kinds):
        return good(node, "" if how == "naive 4" else how, kinds)

    monkeypatch.setattr(stand_in, "_latent", better)
    assert not checks_of(stand_in, lenient)["SVDQuant's pictures are nearer to BF16 than naive 4 bits"]
