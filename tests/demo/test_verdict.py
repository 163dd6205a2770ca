"""The reader's verdict: captions in words reach it unchanged, right and wrong pictures are told apart."""

import pytest
import torch

from svdquant_pack.demo.captions import draw_captions
from svdquant_pack.demo.verdict import Judge, Verdict, captions_of
from svdquant_pack.research.training.renderer import nominal_placement, render


@pytest.fixture(scope="module")
def judge():
    return Judge()


def drawn(text):
    captions = captions_of([text])
    picture = render(captions, nominal_placement(captions))[0].movedim(0, -1)
    return (picture * 255).round().byte().numpy()


def test_captions_come_back_as_the_same_words():
    texts = draw_captions(40, torch.Generator().manual_seed(3)).texts()
    assert captions_of(texts).texts() == texts


def test_a_drawing_of_its_caption_is_right(judge):
    text = "a small red heart above a large yellow star on a striped white background"
    assert judge(drawn(text), text) == Verdict()
    assert judge(drawn(text), text).text() == "caption right"


@pytest.mark.parametrize(
    ("shown", "wrong"),
    [
        ("a small red circle above a large yellow star on a striped white background", "shape"),
        ("a small blue heart above a large yellow star on a striped white background", "colour"),
        ("a small red heart above a large yellow star on a dotted white background", "texture"),
    ],
)
def test_another_drawing_is_wrong_where_it_differs(judge, shown, wrong):
    verdict = judge(drawn(shown), "a small red heart above a large yellow star on a striped white background")
    assert verdict.wrong == (wrong,) and verdict.text() == f"wrong: {wrong}"
