"""Captions by the thousand: random scenes as tensors, their words, and the conditioning of those words.

One scene at a time, and in words, is demo/scenes.py; this says the same of whole batches, on any device.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .scenes import COLOURS, SENTENCES, SHAPES, SIZES, TEXTURES, TOKENS, VOCABULARY, Scene, encode

SLOTS = 3  # objects that a scene has at most
STYLES = (
    "filled",
    "outlined",
    "striped",
    "tilted",
    "night",
    "white border",
    "black border",
    "flat",
)
LAYOUTS = ("centre", "top left", "top right", "bottom left", "bottom right", "across", "down", "row", "column")
_LAYOUT_OF_SENTENCE = (0, 1, 2, 3, 4, 5, 5, 6, 6, 7, 8)
_SENTENCE_WEIGHTS = (2.0, 1.0, 1.0, 1.0, 1.0, 2.5, 2.5, 2.5, 2.5, 4.0, 4.0)
_COUNT = tuple(sum(f"{{{slot}}}" in form for slot in range(SLOTS)) for form, _ in SENTENCES)
_BLACK = COLOURS.index("black")
_DIFFICULT_SHAPES = (SHAPES.index("star"), SHAPES.index("ring"))
_ATTRIBUTE = 1000  # _forms(): words from here on are filled from the scene

# How much more often training sees what a small FLUX draws badly: shapes with thin parts, small ones, dark grounds.
_SHAPE_WEIGHTS = {"star": 1.8, "ring": 1.6, "heart": 1.2, "cross": 1.2}
_SMALL_SHARE = 0.58
_DARK_WEIGHT = 2.2


@dataclass(frozen=True)
class Captions:
    """What B captions say; every field is int64, and slots run left to right, then top to bottom.

    Args:
        sentence: (B,) index into SENTENCES.
        size, colour, shape: (B, 3) of each slot; slots from `count` on mean nothing.
        texture, ground: (B,) of the ground.
    """

    sentence: Tensor
    size: Tensor
    colour: Tensor
    shape: Tensor
    texture: Tensor
    ground: Tensor

    def __len__(self) -> int:
        return len(self.sentence)

    def __getitem__(self, index: slice | Tensor) -> "Captions":
        return Captions(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, device: torch.device | str) -> "Captions":
        """The same captions on another device."""
        return Captions(*(getattr(self, field.name).to(device) for field in fields(self)))

    @property
    def layout(self) -> Tensor:
        """(B,) index into LAYOUTS."""
        return _like(_LAYOUT_OF_SENTENCE, self.sentence)[self.sentence]

    @property
    def count(self) -> Tensor:
        """(B,) objects of the scene, 1 to 3."""
        return _like(_COUNT, self.sentence)[self.sentence]

    @property
    def is_drawn(self) -> Tensor:
        """(B, 3) bool: whether the slot holds an object."""
        return torch.arange(SLOTS, device=self.sentence.device) < self.count[:, None]

    @property
    def is_held_out(self) -> Tensor:
        """(B,) bool: `Scene.is_held_out` of each caption."""
        code = 7 * self.sentence + 3
        for slot in range(SLOTS):
            said = 1 + 37 * self.shape[:, slot] + 11 * self.colour[:, slot] + 5 * self.size[:, slot]
            code = code * 131 + torch.where(self.count > slot, said, 0)
        code = code * 131 + 17 * self.ground + self.texture
        return (code * 2654435761 % 2**32 >> 16) % 10 == 0  # int64 wraps, which changes nothing modulo 2^32

    @property
    def is_difficult(self) -> Tensor:
        """(B,) bool: a dark ground with a small star or a small ring on it."""
        thin = torch.isin(self.shape, _like(_DIFFICULT_SHAPES, self.shape))
        return (self.ground == _BLACK) & (thin & (self.size == 0) & self.is_drawn).any(1)

    def scene(self, index: int) -> Scene:
        """One of them as demo/scenes.py has it."""
        size, colour, shape = (field[index].tolist() for field in (self.size, self.colour, self.shape))
        drawn = range(int(self.count[index]))
        objects = tuple((SIZES[size[slot]], COLOURS[colour[slot]], SHAPES[shape[slot]]) for slot in drawn)
        ground = COLOURS[int(self.ground[index])]
        return Scene(int(self.sentence[index]), objects, TEXTURES[int(self.texture[index])], ground)

    def word_ids(self) -> Tensor:
        """(B, TOKENS) int64: the words of each caption as indices into VOCABULARY, padded with 0."""
        order = torch.arange(SLOTS, device=self.sentence.device).repeat(len(self), 1)
        is_swapped = _like([first_is_second for _, first_is_second in SENTENCES], self.sentence)[self.sentence]
        order[is_swapped, :2] = order.new_tensor([1, 0])
        columns = []
        for slot in range(SLOTS):
            place = order[:, slot : slot + 1]
            for field, words in ((self.size, SIZES), (self.colour, COLOURS), (self.shape, SHAPES)):
                columns.append(field.gather(1, place) + VOCABULARY.index(words[0]))
        columns.append(self.texture[:, None] + VOCABULARY.index(TEXTURES[0]))
        columns.append(self.ground[:, None] + VOCABULARY.index(COLOURS[0]))
        forms = _like(_forms(), self.sentence)[self.sentence]
        filled = torch.cat(columns, 1).gather(1, (forms - _ATTRIBUTE).clamp(min=0))
        return torch.where(forms >= _ATTRIBUTE, filled, forms)

    def texts(self) -> list[str]:
        """The captions in words."""
        return [" ".join(VOCABULARY[word] for word in row if word) for row in self.word_ids().tolist()]


class Conditioning:
    """`scenes.encode` for batches of word ids, on one device."""

    def __init__(self, device: torch.device | str) -> None:
        contexts, pooled = zip(*(encode(word) for word in VOCABULARY[1:]), strict=True)
        width = contexts[0].shape[-1] // 4
        self._vectors = torch.stack([torch.zeros(width), *(context[0, 0, :width] for context in contexts)]).to(device)
        self._pooled = torch.cat([torch.zeros_like(pooled[0]), *pooled]).to(device)
        self._places = encode(" ".join(VOCABULARY[1:2] * TOKENS))[0][0, :, 3 * width :].to(device)

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Turn word ids (B, TOKENS) into context (B, TOKENS, CONTEXT_WIDTH) and pooled (B, POOLED_WIDTH), fp32."""
        is_word = (ids > 0)[..., None]
        word = self._vectors[ids]
        before = torch.nn.functional.pad(word, (0, 0, 1, 0))[:, :TOKENS]
        before_that = torch.nn.functional.pad(word, (0, 0, 2, 0))[:, :TOKENS]
        places = self._places.expand(len(ids), -1, -1)
        context = torch.cat([word, before, before_that, places], -1) * is_word
        return context, self._pooled[ids].sum(1) / is_word.sum(1)


def draw_captions(
    count: int, generator: torch.Generator, *, held_out: bool = False, weighted: bool = False, difficult: bool = False
) -> Captions:
    """Draw random captions on the generator's device.

    Args:
        held_out: only captions that training never sees; otherwise only the others.
        weighted: more small shapes, stars, rings and dark grounds.
        difficult: only captions with `is_difficult`.
    """
    share = (0.1 if held_out else 0.9) * (0.02 if difficult else 1.0)
    kept: list[Captions] = []
    while sum(map(len, kept)) < count:
        drawn = _draw(int(count / share) + 64, generator, weighted)
        is_wanted = drawn.is_held_out == held_out
        if difficult:
            is_wanted &= drawn.is_difficult
        kept.append(drawn[is_wanted])
    together = (torch.cat([getattr(part, field.name) for part in kept]) for field in fields(Captions))
    return Captions(*together)[:count]


def _draw(count: int, generator: torch.Generator, weighted: bool) -> Captions:
    device = generator.device

    def choose(weights: Tensor, *shape: int) -> Tensor:
        numbers = count * torch.Size(shape).numel()
        return torch.multinomial(weights, numbers, replacement=True, generator=generator).view(count, *shape)

    shape_weights = [_SHAPE_WEIGHTS.get(shape, 1.0) if weighted else 1.0 for shape in SHAPES]
    small = _SMALL_SHARE if weighted else 0.5
    colour = torch.randint(len(COLOURS), (count, SLOTS), device=device, generator=generator)
    ground_weights = torch.ones(count, len(COLOURS), device=device)
    ground_weights[:, _BLACK] = _DARK_WEIGHT if weighted else 1.0
    ground_weights.scatter_(1, colour, 0.0)  # an object never has the colour of its ground
    return Captions(
        sentence=choose(torch.tensor(_SENTENCE_WEIGHTS, device=device)),
        size=choose(torch.tensor([small, 1 - small], device=device), SLOTS),
        colour=colour,
        shape=choose(torch.tensor(shape_weights, device=device), SLOTS),
        texture=torch.randint(len(TEXTURES), (count,), device=device, generator=generator),
        ground=torch.multinomial(ground_weights, 1, generator=generator)[:, 0],
    )


def _forms() -> list[list[int]]:
    """Each sentence as TOKENS word ids, with _ATTRIBUTE + index where the scene's own words go."""
    rows = []
    for form, _ in SENTENCES:
        attribute = 0
        row = []
        for piece in form.replace("{ground}", "on a * * background").split():
            for word in ("a", "*", "*", "*") if piece.startswith("{") else (piece,):
                row.append(_ATTRIBUTE + attribute if word == "*" else VOCABULARY.index(word))
                attribute += word == "*"
        spoken = attribute - 2  # texture and ground stand last among the attributes, whatever the number of objects
        row = [word + 3 * SLOTS - spoken if word >= _ATTRIBUTE + spoken else word for word in row]
        rows.append(row + [0] * (TOKENS - len(row)))
    return rows


def _like(values: object, like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device)
