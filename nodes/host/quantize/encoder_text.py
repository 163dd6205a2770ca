"""Texts through a text encoder, and how far what comes out of two encoders differs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .layer_progress import LayerProgress


def encode(clip, prompt: str, padded: bool = True) -> list[Tensor]:
    """Everything that a text encoder gives for a prompt, on the CPU: hidden states, pooled ones, others.

    Args:
        padded: as models get it; otherwise what is only there to fill up is left out.
    """
    LayerProgress.poll()
    tokens = clip.tokenize(prompt)
    with torch.inference_mode():
        found = clip.encode_from_tokens(tokens if padded else trimmed(tokens), return_dict=True)
    values = [value for key, value in sorted(found.items()) if isinstance(value, Tensor) and value.is_floating_point()]
    return [value.float().cpu() for value in values if value.ndim > 1]


def trimmed(tokens: Any) -> Any:
    """Tokens as the host has them, without the runs of one token that fill a prompt up at either end."""
    if isinstance(tokens, dict):
        return {key: trimmed(value) for key, value in tokens.items()}
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], list):
        return tokens
    return [_trim(row) for row in tokens]


def _trim(row: list) -> list:
    keys = [token[0] if isinstance(token, tuple) and isinstance(token[0], int) else None for token in row]
    start, stop = 0, len(row)
    while stop - start > 2 and keys[stop - 1] is not None and keys[stop - 1] == keys[stop - 2]:
        stop -= 1
    while stop - start > 2 and keys[start] is not None and keys[start] == keys[start + 1]:
        start += 1
    return row[start:stop]


def difference(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Mean over all tokens of ||found - exact|| / ||exact||.

    Not of all tokens together: in most encoders the first one is a hundred times as large as the others.
    """
    errors = []
    for ours, theirs in zip(found, exact, strict=True):
        rows, wanted = ours.flatten(0, -2), theirs.flatten(0, -2)
        size = wanted.norm(dim=-1)
        errors.append(((rows - wanted).norm(dim=-1) / size)[size > 0])
    every = torch.cat(errors) if errors else torch.zeros(0)
    return float(every.mean()) if len(every) else 0.0
