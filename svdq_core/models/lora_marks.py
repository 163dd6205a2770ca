"""Which family a LoRA is for that fits no layer of a model, told by pieces of its names; the families describe them."""

import re
from collections.abc import Iterable, Iterator

from .architecture import Architecture
from .others import OTHERS

_NUMBER = re.compile(r"\d+")


def other_family_of_lora(families: Iterable[Architecture], keys: Iterable[str], known: Iterable[str]) -> str:
    """What a LoRA is for, or "".

    Args:
        families: those described, in the order in which they are asked.
        keys: of the file. known: names of the model that it does not fit; what they have, too, tells nothing.
    """
    keys, known = _joined(keys), _joined(known)
    for title, mark in _marks(families):
        piece = _plain(mark)
        if piece in keys and piece not in known:
            return title
    return ""


def _marks(families: Iterable[Architecture]) -> Iterator[tuple[str, str]]:
    for family in families:
        if family.lora is not None:
            yield from ((family.lora.called or family.title, mark) for mark in family.lora.marks)
    yield from ((other.title, mark) for other in OTHERS for mark in other.lora)


def _joined(names: Iterable[str]) -> str:
    return "\n".join(_plain(name) for name in names)


def _plain(name: str) -> str:
    """Trainers write dots or underlines; one block is as good as another."""
    return _NUMBER.sub("0", name.replace("_", "."))
