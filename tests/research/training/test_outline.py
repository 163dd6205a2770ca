"""The fit of outlines: near 1 for drawings, low for another or a bent shape, blind to place."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from svdquant_pack.demo.captions import draw_captions
from svdquant_pack.research.training.outline import outline_figures, outline_overlaps, shape_overlaps
from svdquant_pack.research.training.renderer import place, render


@pytest.fixture(scope="module")
def drawings():
    generator = torch.Generator().manual_seed(5)
    captions = draw_captions(8, generator, held_out=True)
    return captions, render(captions, place(captions, generator))


def mean(pictures, captions):
    return outline_figures(outline_overlaps(pictures, captions))["mean IoU"]


def test_drawings_fit(drawings):
    captions, pictures = drawings
    overlaps = outline_overlaps(pictures, captions)
    assert torch.equal(overlaps.isnan(), ~captions.is_drawn)
    figures = outline_figures(overlaps)
    assert figures["mean IoU"] > 0.985
    assert figures["share of objects below 0.85"] == 0
    assert min(shape_overlaps(overlaps, captions).values()) > 0.96


def test_another_shape_does_not(drawings):
    captions, pictures = drawings
    assert mean(pictures, replace(captions, shape=(captions.shape + 1) % 8)) < 0.75


def test_place_does_not_matter(drawings):
    captions, pictures = drawings
    assert abs(mean(pictures.roll((3, -2), (2, 3)), captions) - mean(pictures, captions)) < 0.01


def test_a_bent_outline_fits_worse(drawings):
    captions, pictures = drawings
    theta = torch.tensor([[1.0, 0.12, 0.0], [0.0, 1.0, 0.0]]).expand(len(pictures), 2, 3)
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    sheared = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    assert mean(sheared, captions) < mean(pictures, captions) - 0.015


def test_a_missing_object_has_no_overlap(drawings):
    captions, pictures = drawings
    blank = pictures[:, :, :4, :4].mean((2, 3), keepdim=True).expand_as(pictures)
    assert mean(blank, captions) < 0.1
