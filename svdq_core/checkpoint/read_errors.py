"""The one place where whatever goes wrong while a file is read becomes a sentence with the file's name."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import CheckpointError, SVDQuantError

LONGEST_REASON = 200  # letters; a damaged file may put anything into an error
DAMAGED = "It is damaged, or of a kind that is not read here."


@contextmanager
def reading(shown: str, advice: str = DAMAGED) -> Iterator[None]:
    """Errors that nobody foresaw become CheckpointError; the pack's own, and a full GPU, pass.

    The host's interruptions are errors, too: nothing that may raise one belongs inside.

    Args:
        shown: name of the file. advice: what to do.
    """
    try:
        yield
    except (SVDQuantError, torch.cuda.OutOfMemoryError):
        raise
    except MemoryError as error:
        raise CheckpointError(f"{shown}: there is too little memory to read it. {advice}") from error
    except Exception as error:
        raise CheckpointError(f"{shown}: cannot be read ({reason(error)}). {advice}") from error


def reason(error: Exception) -> str:
    """An error in one printable line."""
    text = f"{type(error).__name__}: {error}".split("\n")[0][:LONGEST_REASON]
    return printable(text)


def printable(name: str) -> str:
    """A name as one line that can be shown and stored: bytes that are no UTF-8, and control letters, spelled out."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
