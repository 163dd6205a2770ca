"""What the scene reader says about a picture: is everything there that the caption asks for?"""

from dataclasses import dataclass

import numpy as np
import torch

from .captions import SLOTS, Captions
from .install import MODELS, READER
from .model_files import read_model
from .reader import Reader, read
from .scenes import COLOURS, SHAPES, SIZES, TEXTURES, read_caption


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a picture.

    Args:
        wrong: names of attributes (shape, colour, size, layout, ground, texture) that differ from the caption.
    """

    wrong: tuple[str, ...] = ()

    @property
    def is_right(self) -> bool:
        return not self.wrong

    def text(self) -> str:
        """In the words of the sheet."""
        return "caption right" if self.is_right else f"wrong: {', '.join(self.wrong)}"


class Judge:
    """The reader, a small network trained on drawn scenes."""

    def __init__(self) -> None:
        self._reader = read_model(Reader(), MODELS / READER, torch.device("cpu"))

    def __call__(self, image: np.ndarray, caption: str) -> Verdict:
        """Read a picture (H, W, 3) uint8 of a caption."""
        pictures = torch.from_numpy(image).movedim(-1, 0)[None].float() / 255
        reading = read(self._reader, pictures, captions_of([caption]))
        wrong = [
            name
            for name, right in reading.is_right.items()
            if not bool((right if right.ndim == 1 else right[reading.is_drawn]).all())
        ]
        return Verdict(tuple(wrong))


def captions_of(texts: list[str]) -> Captions:
    """Captions in words as the reader takes them.

    Raises:
        ValueError: as `read_caption`.
    """
    scenes = [read_caption(text) for text in texts]

    def slots(place: int, words: tuple[str, ...]) -> torch.Tensor:
        rows = [[words.index(thing[place]) for thing in scene.objects] for scene in scenes]
        return torch.tensor([row + [0] * (SLOTS - len(row)) for row in rows])

    return Captions(
        sentence=torch.tensor([scene.sentence for scene in scenes]),
        size=slots(0, SIZES),
        colour=slots(1, COLOURS),
        shape=slots(2, SHAPES),
        texture=torch.tensor([TEXTURES.index(scene.texture) for scene in scenes]),
        ground=torch.tensor([COLOURS.index(scene.ground) for scene in scenes]),
    )
