"""The note that every workflow opens with: which files, how large, where from, which folder, which card."""

import re

from .graph import ModelFile, Workflow
from .layout import STAGE_GAP, TITLE

NOTE_COLUMNS, NOTE_LINE, NOTE_GAP = 165, 14, 5  # characters of a line of a note, its height, what follows a paragraph
CARD = (
    "**RTX 50 (Blackwell)?** Take **{fp4}** from the same page instead. Every other card takes the int4 file. "
    "Not sure: run the template *environment-check*; it also says what to repair."
)
DOWNLOAD = (
    "Missing files: the page offers them under *View details* → *Download all*, or download them by hand. Files that "
    "you have under other names: choose them in the loaders."
)
GATED = " **Gated**: log in there and accept the licence first."


def read_me_first(workflow: Workflow) -> str:
    """Markdown for the note."""
    parts = [f"# Read me first: {workflow.title}", workflow.summary]
    if workflow.files:
        parts.append("\n".join(_line(file) for file in workflow.files))
        published = [
            file.name for file in workflow.files if "svdq-int4" in file.name and file.page and not file.only_int4
        ]
        if published:
            parts.append(CARD.format(fp4=published[0].replace("svdq-int4", "svdq-fp4")))
        parts.append(DOWNLOAD)
    if workflow.note:
        parts.append(workflow.note)
    return "\n\n".join(parts) + "\n"


def _line(file: ModelFile) -> str:
    # bold, not code: on a coloured note the page draws code in the colour of its background (nodes as page elements)
    size = f" ({file.gib:g} GB)" if file.gib is not None else ""
    where = f"from [{file.page.removeprefix('https://huggingface.co/')}]({file.page})" if file.page else "made by you"
    there = file.url.rpartition("/")[2]
    renamed = "" if there in ("", file.name) else f" It is called **{there}** there: rename it."
    return f"- **{file.name}**{size} in models/{file.folder}, {where}.{renamed}{GATED if file.gated else ''}"


def note_height(text: str) -> int:
    """Pixels that the text of a note takes, about: a heading, and lines with some room between paragraphs."""
    lines = [line for line in text.splitlines() if line]
    return 48 + sum(NOTE_GAP + NOTE_LINE * (1 + len(_shown(line)) // NOTE_COLUMNS) for line in lines)


def _shown(line: str) -> str:
    """A line of Markdown without the addresses of its links."""
    return re.sub(r"\]\([^)]*\)", "", line)


def below_note(text: str) -> int:
    """Where the nodes begin, in pixels from above."""
    return note_height(text) + TITLE + STAGE_GAP if text else 0
