"""Batches of captions say what demo/scenes.py says of each."""

import pytest
import torch

from svdquant_pack.demo.captions import Conditioning, draw_captions
from svdquant_pack.demo.scenes import COLOURS, encode, read_caption


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("held_out", [False, True])
def test_words_and_hash_are_those_of_scenes(held_out):
    captions = draw_captions(60, generator(), held_out=held_out)
    assert len(set(captions.sentence.tolist())) > 8
    for index, text in enumerate(captions.texts()):
        assert read_caption(text) == captions.scene(index)
        assert captions.scene(index).is_held_out == held_out
        assert len(captions.scene(index).objects) == captions.count[index] == captions.is_drawn[index].sum()


def test_conditioning_is_that_of_scenes():
    captions = draw_captions(20, generator())
    context, pooled = Conditioning("cpu")(captions.word_ids())
    for index, text in enumerate(captions.texts()):
        expected_context, expected_pooled = encode(text)
        torch.testing.assert_close(context[index], expected_context[0])
        torch.testing.assert_close(pooled[index], expected_pooled[0], atol=1e-5, rtol=1e-5)


def test_difficult_captions_are_dark_and_thin():
    captions = draw_captions(20, generator(), held_out=True, difficult=True)
    for index in range(len(captions)):
        scene = captions.scene(index)
        assert scene.is_held_out
        assert scene.ground == "black"
        assert any(size == "small" and shape in ("star", "ring") for size, _, shape in scene.objects)


def test_an_object_never_has_the_colour_of_its_ground():
    captions = draw_captions(500, generator())
    assert not (captions.colour == captions.ground[:, None]).any()


def test_weights_bring_more_of_what_is_drawn_badly():
    usual, weighted = draw_captions(2000, generator()), draw_captions(2000, generator(), weighted=True)
    black = COLOURS.index("black")
    assert (weighted.ground == black).sum() > 1.4 * (usual.ground == black).sum()
    assert weighted.is_difficult.sum() > 1.5 * usual.is_difficult.sum()


def test_a_seed_gives_the_same_captions():
    assert draw_captions(9, generator(3)).texts() == draw_captions(9, generator(3)).texts()
    assert draw_captions(9, generator(3)).texts() != draw_captions(9, generator(4)).texts()
