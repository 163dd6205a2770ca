"""Texts through encoders: tokens that only fill up, and what counts as a difference."""

import pytest
import torch

from svdquant_pack.nodes.host.quantize.encoder_text import difference, trimmed


def row(*tokens):
    return [(token, 1.0) for token in tokens]


def test_padding_at_either_end_is_left_out():
    assert trimmed({"a": [row(5, 6, 7, 0, 0, 0)], "b": [row(9, 9, 9, 4, 5)]}) == {
        "a": [row(5, 6, 7, 0)],
        "b": [row(9, 4, 5)],
    }
    assert trimmed({"c": [row(3, 3, 3)]}) == {"c": [row(3, 3)]}


def test_what_is_no_row_of_tokens_stays():
    image = [({"type": "image"}, 1.0), (5, 1.0), (5, 1.0), (5, 1.0)]
    assert trimmed({"a": [image]})["a"] == [image[:2]]
    assert trimmed({"metadata": {"seed": 3}, "none": []}) == {"metadata": {"seed": 3}, "none": []}


def test_every_token_counts_alike():
    exact = torch.ones(1, 4, 8)
    exact[0, 0] *= 1000
    found = exact.clone()
    found[0, 1:] *= 1.1
    assert difference([found], [exact]) == pytest.approx(0.075)
    assert difference([torch.zeros(1, 2, 3)], [torch.zeros(1, 2, 3)]) == 0.0
