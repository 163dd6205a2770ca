"""The words, their vectors and the sentences: what the weights were trained with, and nothing else."""

import pytest
import torch

from svdquant_pack.demo.gallery import SUBJECTS
from svdquant_pack.demo.scenes import (
    CONTEXT_WIDTH,
    POOLED_WIDTH,
    SENTENCES,
    TOKENS,
    VOCABULARY,
    encode,
    read_caption,
    words,
)

CAPTION = "a large red star on a plain white background"
# What the code that trained the weights made of CAPTION: elements of token 2, "red", and of the pooled vector.
TOKEN_ELEMENTS, TOKEN_VALUES = [0, 31, 32, 64, 96, 127], [-0.104558, 1.567738, 0.406709, -1.144828, 1.69479, 1.213459]
POOLED_ELEMENTS, POOLED_VALUES = [0, 31, 63], [-1.91125, 2.880131, 1.042071]
TRAINED = (
    "a small purple diamond below a large orange ring on a dotted red background",
    "a large green heart a small red ring and a large green heart in a column on a plain black background",
    "a large black square right of a large yellow ring on a dotted purple background",
    "a small white square above a small red star on a dotted black background",
)


def test_vocabulary_is_the_one_of_the_weights():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 39
    places = {"a": 1, "background": 16, "small": 17, "red": 19, "circle": 27, "plain": 35, "checkered": 38}
    assert {word: VOCABULARY.index(word) for word in places} == places


def test_encoding_is_the_one_of_the_weights():
    context, pooled = encode(CAPTION)
    assert context.shape == (1, TOKENS, CONTEXT_WIDTH)
    assert pooled.shape == (1, POOLED_WIDTH)
    torch.testing.assert_close(context[0, 2, TOKEN_ELEMENTS], torch.tensor(TOKEN_VALUES), atol=1e-4, rtol=0)
    torch.testing.assert_close(pooled[0, POOLED_ELEMENTS], torch.tensor(POOLED_VALUES), atol=1e-4, rtol=0)


def test_tokens_carry_the_two_words_before_them():
    context = encode(CAPTION)[0][0]
    word, before, before_that = context[:, :32], context[:, 32:64], context[:, 64:96]
    count = len(CAPTION.split())
    torch.testing.assert_close(before[1:count], word[: count - 1])
    torch.testing.assert_close(before_that[2:count], word[: count - 2])
    assert not before[0].any()
    assert not before_that[:2].any()
    assert not context[count:].any()


def test_capitals_and_commas_do_not_matter():
    plain, fancy = encode(CAPTION), encode("A large red star, on a plain white background")
    assert all(torch.equal(a, b) for a, b in zip(plain, fancy, strict=True))


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a large pink star on a plain white background", "does not know 'pink'"),
        ("", "has 0 words"),
        ("a " * 25, "has 25 words"),
        ("<pad>", "does not know '<pad>'"),
    ],
)
def test_words_refuse(caption, message):
    with pytest.raises(ValueError, match=message):
        words(caption)


@pytest.mark.parametrize("index", range(len(SENTENCES)))
def test_every_sentence_is_read(index):
    things = ["a small red circle", "a large blue star", "a small green ring"]
    form, first_is_second = SENTENCES[index]
    scene = read_caption(form.format(*things, ground="on a dotted black background"))
    count = sum(f"{{{slot}}}" in form for slot in range(3))
    objects = [("small", "red", "circle"), ("large", "blue", "star"), ("small", "green", "ring")][:count]
    assert scene.sentence == index
    assert list(scene.objects) == (objects[::-1] if first_is_second else objects)
    assert (scene.texture, scene.ground) == ("dotted", "black")


def test_a_sentence_of_another_form_is_refused():
    with pytest.raises(ValueError, match="no sentence that the demo model was taught"):
        read_caption("a star on a large red background")


def test_held_out_captions_are_those_of_the_training():
    assert all(read_caption(subject.caption).is_held_out for subject in SUBJECTS)
    for caption in TRAINED:
        assert not read_caption(caption).is_held_out


def test_one_caption_in_ten_is_held_out():
    captions = [
        f"a {size} {colour} {shape} above a {size} {other} {shape} on a {texture} white background"
        for size in ("small", "large")
        for colour in ("red", "blue", "green", "purple")
        for other in ("yellow", "orange", "black")
        for shape in ("circle", "star", "ring", "heart", "cross")
        for texture in ("plain", "striped", "dotted", "checkered")
    ]
    share = sum(read_caption(caption).is_held_out for caption in captions) / len(captions)
    assert 0.05 < share < 0.16
