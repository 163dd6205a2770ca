"""The tables of GPUs in the README, its translation and docs/numbers.md, made from kernels/gpus.py.

python tools/gpu_tables.py writes them where they stand; a test holds them equal to what is made here. It needs torch.
"""

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest.mock import patch

import svdquant_pack
from svdquant_pack import ROOT

if TYPE_CHECKING:
    from svdquant_pack.kernels.gpus import Generation

PRECISIONS = ("int4", "nvfp4")


@dataclass(frozen=True)
class Words:
    """What a language calls things.

    Args:
        heading: of the first column, of the files' columns with {}, of the last column.
        modes: compute mode -> how its products are made. plain: of a GPU without kernels.
        others: every GPU that no row names. both: two modes, of INT4 and of NVFP4 files. comma: between cards.
    """

    heading: tuple[str, str, str]
    modes: dict[str, str]
    plain: str
    others: str
    both: str
    comma: str


ENGLISH = Words(
    ("card", "{} files", "`auto` chooses"),
    {"w4a4": "native 4-bit", "w4a8": "8-bit", "w4a16": "16-bit products"},
    "plain torch, slower",
    "others, or no Triton",
    "{} (INT4), {} (NVFP4)",
    ", ",
)
CHINESE = Words(
    ("显卡", "{} 文件", "`auto` 的选择"),
    {"w4a4": "原生 4 位", "w4a8": "8 位", "w4a16": "16 位乘法"},
    "普通 torch,较慢",
    "其他显卡,或没有 Triton",
    "{}(INT4),{}(NVFP4)",
    "、",
)


def _kernels(name: str):
    return importlib.import_module(f"{svdquant_pack.__name__}.kernels.{name}")


@contextmanager
def _newest_triton() -> Iterator[None]:
    """The tables are of a Triton that compiles every kernel, whichever is installed where they are made."""
    four_bit, layer_paths = _kernels("paths.four_bit"), _kernels("paths.layer_paths")
    with ExitStack() as stack:
        for module in (four_bit, layer_paths):
            stack.enter_context(patch.object(module, "why_no_language", lambda _kernel: None))
        stack.enter_context(patch.object(four_bit, "why_too_old", lambda _needed, _what: None))
        yield


def _maker(row: "Generation") -> str:
    """NVIDIA's cards are known by their own names; AMD's all share theirs."""
    return "AMD " if any(isinstance(chip, str) for chip in row.chips) else ""


def _rows(rows: "list[Generation]", comma: str, cells_of) -> Iterator[list[str]]:
    """Table rows, those of one maker's GPUs with the same cells in one."""
    cards: dict[tuple, list[str]] = {}
    for row in rows:
        cards.setdefault((_maker(row), *cells_of(row)), []).extend(row.cards.split(", "))
    for (maker, *cells), names in cards.items():
        yield [maker + comma.join(names), *cells]


def _table(heading: list[str], rows: list[list[str]]) -> list[str]:
    first, *others = (f"| {' | '.join(cells)} |" for cells in (heading, *rows))
    return [first, "|" + "---|" * len(heading), *others]


def _auto(row: "Generation", words: Words) -> str:
    modes = [_kernels("choose_compute").choose_on(precision, row)[0] for precision in PRECISIONS]
    return modes[0] if len(set(modes)) == 1 else words.both.format(*modes)


@_newest_triton()
def by_file(words: Words) -> list[str]:
    """What each GPU does with a file of each precision, as `auto` chooses."""
    gpus, auto = _kernels("gpus"), _kernels("choose_compute")

    def cells(row: "Generation") -> tuple[str, ...]:
        modes = [auto.choose_on(precision, row)[0] for precision in PRECISIONS]
        ways = [words.plain if row.target is None else words.modes[mode] for mode in modes]
        return (*ways, _auto(row, words))

    first, files, last = words.heading
    rows = [*_rows(list(gpus.GENERATIONS), words.comma, cells), [words.others, *cells(gpus.OTHER)]]
    return _table([first, *(files.format(p.upper()) for p in PRECISIONS), last], rows)


@_newest_triton()
def by_path() -> list[str]:
    """The first path through kernels that each GPU has in each mode, whatever the size of a layer."""
    gpus, paths = _kernels("gpus"), _kernels("paths.layer_paths")

    def cells(row: "Generation") -> tuple[str, ...]:
        if row.target is None:
            return ("plain torch",) * 3 + (_auto(row, ENGLISH), row.evidence)
        calls = (("int4", "w4a4"), ("nvfp4", "w4a4"), ("int4", "w4a8"))
        found = [[name for name, why_not in paths.describe_paths(*call, row) if why_not is None] for call in calls]
        return (*(names[0] if names else "plain torch" for names in found), _auto(row, ENGLISH), row.evidence)

    *cells_of_others, _ = cells(gpus.OTHER)
    rows = [*_rows(list(gpus.GENERATIONS), ", ", cells), [ENGLISH.others, *cells_of_others, ""]]
    return _table(["GPU", "w4a4, INT4 files", "w4a4, NVFP4 files", "w4a8", "`auto`", "evidence"], rows)


def tables() -> dict[str, list[str]]:
    """File -> lines of the table of GPUs in it."""
    return {"README.md": by_file(ENGLISH), "README.zh-CN.md": by_file(CHINESE), "docs/numbers.md": by_path()}


def with_table(text: str, lines: list[str]) -> str:
    """A text with the table that has the heading of `lines` replaced by them."""
    pattern = re.escape(lines[0]) + r"\n(?:\|.*\n)*"
    if len(re.findall(pattern, text)) != 1:
        raise ValueError(f"expected one table with the heading {lines[0]}")
    return re.sub(pattern, lambda _: "\n".join([*lines, ""]), text)


def main() -> int:
    for file, lines in tables().items():
        path = ROOT / file
        path.write_text(with_table(path.read_text(encoding="utf-8"), lines), encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
