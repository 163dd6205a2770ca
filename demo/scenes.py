"""The language of the demo's FLUX: its words, their fixed vectors, and the sentences it was taught.

There is no text encoder. Every word has a fixed random vector; FLUX gives text tokens no position, so each token
carries the vectors of its word, of the two words before it ("large red" stays bound to "circle") and of its place.
"""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

SIZES = ("small", "large")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "diamond")
TEXTURES = ("plain", "striped", "dotted", "checkered")
PAD = "<pad>"
_GLUE = ("a", "and", "at", "in", "of", "on", "the")
_PLACES = ("top", "bottom", "left", "right", "above", "below", "row", "column", "background")
# the order is that of the trained weights
VOCABULARY = (PAD, *_GLUE, *_PLACES, *SIZES, *COLOURS, *SHAPES, *TEXTURES)
_WORD_ID = {word: index for index, word in enumerate(VOCABULARY)}

TOKENS = 24  # tokens of a caption, padded
WORD_WIDTH = 32  # a token is four vectors of this width: word, word before, word before that, place
CONTEXT_WIDTH = 4 * WORD_WIDTH  # context_in_dim of the FLUX
POOLED_WIDTH = 64  # vec_in_dim of the FLUX
_POOLED_GAIN = 3.0
_SEED = 20240801

# Sentence form -> does the object named first stand in the scene's second slot? The order numbers the forms.
SENTENCES = (
    ("{0} {ground}", False),
    ("{0} at the top left {ground}", False),
    ("{0} at the top right {ground}", False),
    ("{0} at the bottom left {ground}", False),
    ("{0} at the bottom right {ground}", False),
    ("{0} left of {1} {ground}", False),
    ("{0} right of {1} {ground}", True),
    ("{0} above {1} {ground}", False),
    ("{0} below {1} {ground}", True),
    ("{0} {1} and {2} in a row {ground}", False),
    ("{0} {1} and {2} in a column {ground}", False),
)


@dataclass(frozen=True)
class Scene:
    """What a caption says.

    Args:
        sentence: index into SENTENCES.
        objects: (size, colour, shape) of each object in the order of the scene: left to right, top to bottom.
        texture: of the ground.
        ground: colour of the ground.
    """

    sentence: int
    objects: tuple[tuple[str, str, str], ...]
    texture: str
    ground: str

    @property
    def is_held_out(self) -> bool:
        """Whether training never saw this caption: one in ten, chosen by a hash of all it says."""
        code = 7 * self.sentence + 3
        for slot in range(3):
            code *= 131
            if slot < len(self.objects):
                size, colour, shape = self.objects[slot]
                code += 1 + 37 * SHAPES.index(shape) + 11 * COLOURS.index(colour) + 5 * SIZES.index(size)
        code = 131 * code + 17 * COLOURS.index(self.ground) + TEXTURES.index(self.texture)
        return (code * 2654435761 % 2**32 >> 16) % 10 == 0


def words(caption: str) -> list[str]:
    """Split a caption into words of the vocabulary; capitals and commas do not matter.

    Raises:
        ValueError: an unknown word, no word, or more than TOKENS words.
    """
    found = caption.lower().replace(",", " ").split()
    unknown = [word for word in found if word not in _WORD_ID or word == PAD]
    if unknown:
        raise ValueError(
            f"The demo model does not know {', '.join(map(repr, unknown))}. Its words: {' '.join(VOCABULARY[1:])}."
        )
    if not 1 <= len(found) <= TOKENS:
        raise ValueError(f"The caption has {len(found)} words; the demo model takes 1 to {TOKENS}.")
    return found


def read_caption(caption: str) -> Scene:
    """Read a caption in one of the SENTENCES.

    Raises:
        ValueError: an unknown word, or a sentence of another form.
    """
    text = " ".join(words(caption))
    for index, (form, first_is_second) in enumerate(SENTENCES):
        match = re.fullmatch(_pattern(form), text)
        if match:
            *attributes, texture, ground = match.groups()
            objects = tuple(zip(*[iter(attributes)] * 3, strict=True))
            if first_is_second:
                objects = objects[::-1]
            return Scene(index, objects, texture, ground)
    forms = "; ".join(form.replace("{ground}", "on a TEXTURE COLOUR background") for form, _ in SENTENCES)
    raise ValueError(f"{caption!r} is no sentence that the demo model was taught. It was taught: {forms}.")


def _pattern(form: str) -> str:
    thing = f"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    ground = f"on a ({'|'.join(TEXTURES)}) ({'|'.join(COLOURS)}) background"
    for slot in range(3):
        form = form.replace(f"{{{slot}}}", thing)
    return form.replace("{ground}", ground)


def encode(caption: str) -> tuple[Tensor, Tensor]:
    """Turn a caption into FLUX's conditioning.

    Returns:
        context (1, TOKENS, CONTEXT_WIDTH) and pooled (1, POOLED_WIDTH), both fp32; padding tokens are zero.

    Raises:
        ValueError: as `words`.
    """
    found = words(caption)
    vectors, places, pooling = _tables()
    word = torch.zeros(TOKENS, WORD_WIDTH)
    word[: len(found)] = vectors[[_WORD_ID[w] for w in found]]
    before, before_that = (torch.roll(word, shift, dims=0) for shift in (1, 2))
    context = torch.cat([word, before, before_that, places], dim=1)
    context[0, WORD_WIDTH : 3 * WORD_WIDTH] = 0  # nothing stands before the first word
    context[1, 2 * WORD_WIDTH : 3 * WORD_WIDTH] = 0
    context[len(found) :] = 0
    pooled = word.sum(0) / len(found) @ pooling * _POOLED_GAIN
    return context[None], pooled[None]


def _tables() -> tuple[Tensor, Tensor, Tensor]:
    """Word vectors (words, 32), place vectors (24, 32) and the pooling matrix (32, 64), the same on every machine."""
    generator = torch.Generator().manual_seed(_SEED)
    vectors = torch.randn(len(VOCABULARY), WORD_WIDTH, generator=generator)
    places = torch.linalg.qr(torch.randn(WORD_WIDTH, WORD_WIDTH, generator=generator))[0][:TOKENS]
    pooling = torch.randn(WORD_WIDTH, POOLED_WIDTH, generator=generator) / math.sqrt(WORD_WIDTH)
    return vectors, places * math.sqrt(WORD_WIDTH), pooling
