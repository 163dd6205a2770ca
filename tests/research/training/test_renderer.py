"""Drawings: colours where they belong, styles that differ, the same picture from the same seed."""

import pytest
import torch
import torch.nn.functional as F

from svdquant_pack.demo.captions import STYLES, Captions, draw_captions
from svdquant_pack.demo.scenes import COLOURS, SHAPES
from svdquant_pack.research.training.renderer import GROUND_RGB, RGB, nominal_placement, place, random_palette, render


def one(shape="square", colour="red", ground="blue", size=1):
    """A large thing in the middle of a plain ground."""
    row = [[size] * 3, [COLOURS.index(colour)] * 3, [SHAPES.index(shape)] * 3]
    fields = [torch.tensor([values]) for values in row]
    return Captions(torch.tensor([0]), *fields, torch.tensor([0]), torch.tensor([COLOURS.index(ground)]))


def drawn(captions, style="filled", **options):
    return render(captions, nominal_placement(captions), style, **options)


@pytest.mark.parametrize("colour", COLOURS[:4])
def test_colours_stand_where_they_belong(colour):
    picture = drawn(one(colour=colour))[0]
    torch.testing.assert_close(picture[:, 128, 128], RGB[COLOURS.index(colour)], atol=0.04, rtol=0)
    torch.testing.assert_close(picture[:, 5, 5], GROUND_RGB[COLOURS.index("blue")])


def test_every_style_looks_different():
    pictures = {style: drawn(one("star"), style) for style in STYLES}
    for style, picture in pictures.items():
        for other in STYLES[STYLES.index(style) + 1 :]:
            assert (picture - pictures[other]).abs().amax() > 0.1, (style, other)


def test_styles_mix_in_a_batch():
    captions = one("heart")[torch.zeros(len(STYLES), dtype=torch.int64)]
    together = drawn(captions, torch.arange(len(STYLES)))
    for index, style in enumerate(STYLES):
        torch.testing.assert_close(together[index : index + 1], drawn(one("heart"), style))


def test_stripes_keep_the_silhouette_and_outlines_are_hollow():
    captions = one(colour="yellow", ground="black")
    filled, striped, outlined = (drawn(captions, style)[0] for style in ("filled", "striped", "outlined"))
    ground = filled[:, 5, 5]
    column = striped[:, 100:156, 128]
    assert (column.diff(dim=1).abs().amax(0) > 0.2).sum() == len(range(104, 156, 8))
    torch.testing.assert_close(outlined[:, 128, 128], ground)
    is_object = [(picture - ground[:, None, None]).amax(0) > 0.15 for picture in (filled, striped)]
    assert (is_object[0] & is_object[1]).sum() / (is_object[0] | is_object[1]).sum() > 0.97


def test_night_is_dark_whatever_the_caption_says():
    torch.testing.assert_close(drawn(one(ground="yellow"), "night")[0, :, 5, 5], GROUND_RGB[-1])


def test_small_drawings_are_large_ones_made_small():
    captions = draw_captions(6, torch.Generator().manual_seed(1))
    small, large = drawn(captions, size=128), drawn(captions)
    assert (small - F.avg_pool2d(large, 2)).abs().mean() < 0.006


def test_a_seed_gives_the_same_drawing():
    captions = draw_captions(3, torch.Generator().manual_seed(1))
    first, again, other = (render(captions, place(captions, torch.Generator().manual_seed(s))) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_random_colours_are_as_many_as_asked():
    palette = random_palette(400, torch.Generator().manual_seed(0), 0.25)
    is_random = (palette.object != RGB).any(-1).any(-1)
    assert 60 < is_random.sum() < 140
    assert torch.equal(is_random, (palette.ground != GROUND_RGB).any(-1).any(-1))
