"""The reader's verdict: everything must be right, and what is not drawn does not count."""

from dataclasses import replace

import pytest
import torch

from svdquant_pack.demo.captions import STYLES, draw_captions
from svdquant_pack.demo.reader import Reader, read, reading_loss


class Knowing(torch.nn.Module):
    """Answers as if the picture showed the given captions."""

    def __init__(self, captions):
        super().__init__()
        self.captions = captions

    def forward(self, pictures):
        sizes = {"layout": 9, "ground": 8, "texture": 4, "shape": 8, "colour": 8, "size": 2}
        scores = {name: torch.eye(size)[getattr(self.captions, name)] for name, size in sizes.items()}
        return scores | {"style": torch.eye(len(STYLES))[torch.full((len(pictures),), 2)]}


@pytest.fixture
def captions():
    return draw_captions(40, torch.Generator().manual_seed(0))


def verdict(shown, captions):
    return read(Knowing(shown), torch.zeros(len(captions), 3, 8, 8), captions)


def test_what_is_right_is_right(captions):
    reading = verdict(captions, captions)
    assert set(reading.figures().values()) == {1.0}
    assert (reading.style == 2).all()


@pytest.mark.parametrize(
    ("attribute", "values"), [("shape", 8), ("colour", 8), ("size", 2), ("ground", 8), ("texture", 4)]
)
def test_one_wrong_attribute_spoils_the_scene(captions, attribute, values):
    wrong = getattr(captions, attribute).clone()
    wrong[0] = (wrong[0] + 1) % values
    reading = verdict(replace(captions, **{attribute: wrong}), captions)
    assert reading.scenes.tolist() == [False] + [True] * 39
    assert reading.figures()["scene"] == pytest.approx(39 / 40)


def test_slots_without_an_object_do_not_count(captions):
    shape = torch.where(captions.is_drawn, captions.shape, (captions.shape + 1) % 8)
    assert verdict(replace(captions, shape=shape), captions).scenes.all()


def test_objects_at_the_wrong_place_are_wrong(captions):
    moved = replace(captions, sentence=torch.where(captions.sentence == 9, 10, captions.sentence))
    reading = verdict(moved, captions)
    is_row = captions.sentence == 9
    assert is_row.any()
    assert torch.equal(reading.scenes, ~is_row)
    assert not reading.objects[is_row].any()


def test_loss_ignores_slots_without_an_object(captions):
    scores = Reader()(torch.rand(len(captions), 3, 32, 32))
    style = torch.zeros(len(captions), dtype=torch.int64)
    other = replace(captions, colour=torch.where(captions.is_drawn, captions.colour, 7 - captions.colour))
    torch.testing.assert_close(reading_loss(scores, captions, style), reading_loss(scores, other, style))
    wrong = replace(captions, colour=7 - captions.colour)
    assert reading_loss(scores, captions, style) != reading_loss(scores, wrong, style)
