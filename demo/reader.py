"""A small network that says what a picture shows, slot by slot: it judges whether a caption was drawn."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .captions import LAYOUTS, SLOTS, STYLES, Captions
from .scenes import COLOURS, SHAPES, SIZES, TEXTURES

SIDE = 128  # pixels that it looks at
_OF_SCENE = {"layout": len(LAYOUTS), "ground": len(COLOURS), "texture": len(TEXTURES), "style": len(STYLES)}
_OF_SLOT = {"shape": len(SHAPES), "colour": len(COLOURS), "size": len(SIZES)}
_LAYERS = ((32, 2), (64, 2), (128, 1), (128, 2), (192, 1), (192, 2))  # (channels, stride)
_NECK, _WIDTH = 48, 512
_BATCH = 256


class Reader(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] to the scores of each answer; H = W."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, stride in _LAYERS:
            layers += [nn.Conv2d(channels, width, 3, stride, 1), nn.GroupNorm(8, width), nn.GELU()]
            channels = width
        self.body = nn.Sequential(*layers, nn.Conv2d(channels, _NECK, 1), nn.GELU())
        self.neck = nn.Sequential(nn.Flatten(), nn.Linear(_NECK * 64, _WIDTH), nn.GELU())
        sizes = _OF_SCENE | {name: SLOTS * count for name, count in _OF_SLOT.items()}
        self.out = nn.ModuleDict({name: nn.Linear(_WIDTH, count) for name, count in sizes.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        if pictures.shape[-1] != SIDE:
            pictures = F.interpolate(pictures, size=(SIDE, SIDE), mode="area")
        hidden = self.neck(self.body(pictures * 2 - 1))
        scores = {name: layer(hidden) for name, layer in self.out.items()}
        return {name: score.unflatten(1, (SLOTS, -1)) if name in _OF_SLOT else score for name, score in scores.items()}


@dataclass(frozen=True)
class Reading:
    """How B pictures agree with their captions.

    Args:
        is_right: name of an attribute -> (B,) or, for attributes of objects, (B, 3) bool.
        is_drawn: (B, 3) bool, which slots count.
        style: (B,) index into STYLES that the reader saw.
    """

    is_right: dict[str, Tensor]
    is_drawn: Tensor
    style: Tensor

    @property
    def objects(self) -> Tensor:
        """(B, 3) bool: shape, colour and size right, at the right place."""
        of_slot = torch.stack([self.is_right[name] for name in _OF_SLOT]).all(0)
        return of_slot & self.is_right["layout"][:, None]

    @property
    def scenes(self) -> Tensor:
        """(B,) bool: everything right, the ground too."""
        return (self.objects | ~self.is_drawn).all(1) & self.is_right["ground"] & self.is_right["texture"]

    def figures(self) -> dict[str, float]:
        """Shares that are right, 0 to 1, and of whole scenes by number of objects."""
        found = {
            name: (right[self.is_drawn] if name in _OF_SLOT else right).double().mean().item()
            for name, right in self.is_right.items()
        }
        found["object"] = self.objects[self.is_drawn].double().mean().item()
        found["scene"] = self.scenes.double().mean().item()
        for count in range(1, SLOTS + 1):
            chosen = self.scenes[self.is_drawn.sum(1) == count]
            if len(chosen):
                found[f"scene of {count}"] = chosen.double().mean().item()
        return {name: round(value, 5) for name, value in found.items()}


@torch.no_grad()
def read(reader: Reader, pictures: Tensor, captions: Captions) -> Reading:
    """Compare what the reader sees with what the captions say; the style is no part of it."""
    parts = [reader(part.float()) for part in pictures.split(_BATCH)]
    seen = {name: torch.cat([part[name] for part in parts]).argmax(-1) for name in parts[0]}
    style = seen.pop("style")
    return Reading({name: answer == getattr(captions, name) for name, answer in seen.items()}, captions.is_drawn, style)


def reading_loss(scores: dict[str, Tensor], captions: Captions, style: Tensor) -> Tensor:
    """Cross-entropy of every answer; slots without an object do not count."""
    loss = F.cross_entropy(scores["style"], style)
    for name in ("layout", "ground", "texture"):
        loss = loss + F.cross_entropy(scores[name], getattr(captions, name))
    is_drawn = captions.is_drawn.float()
    for name in _OF_SLOT:
        of_slot = F.cross_entropy(scores[name].flatten(0, 1), getattr(captions, name).flatten(), reduction="none")
        loss = loss + (of_slot.view_as(is_drawn) * is_drawn).sum() / is_drawn.sum()
    return loss
