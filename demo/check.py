"""What the demo holds true, and whether it was."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One statement about what the host drew.

    Args:
        statement: what should hold, in the reader's words.
        passed: whether it did.
        detail: the figure behind it.
    """

    statement: str
    passed: bool
    detail: str
