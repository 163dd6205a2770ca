"""What works without ComfyUI, from the command line: convert IN OUT --to nunchaku|comfy|bf16|svdquant."""

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

PACK = "svdquant_pack"
BAR_WIDTH = 30


def _import(name: str) -> ModuleType:
    """A module of this pack, whose folder has a dash in its name and is no package by itself."""
    if PACK not in sys.modules:
        pack = ModuleType(PACK)
        pack.__path__ = [str(Path(__file__).resolve().parents[1])]
        sys.modules[PACK] = pack
    return importlib.import_module(f"{PACK}.svdq_core.{name}")


def _show_progress(done: int, total: int, name: str) -> None:
    filled = BAR_WIDTH * done // max(total, 1)
    bar = "#" * filled + "." * (BAR_WIDTH - filled)
    sys.stderr.write(f"\r[{bar}] {100 * done // max(total, 1):3d} % {name[-40:]:40}")
    sys.stderr.write("\n" if done == total else "")
    sys.stderr.flush()


def _convert(options: argparse.Namespace) -> None:
    show = _show_progress if sys.stderr.isatty() else lambda *step: None
    done = _import("convert").convert(options.source, options.target, options.to, options.overwrite, show)
    for note in done.notes:
        sys.stdout.write(f"note: {note}\n")
    sys.stdout.write(
        f"{options.target}: {done.tensors} tensors, {done.nbytes / 2**30:.2f} GiB, from {done.source_title} in "
        f"{done.seconds:.1f} s\n"
    )


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="svdq_core", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="write an SVDQuant model in another format")
    convert.add_argument(
        "source", type=Path, help="a .safetensors file, or a folder of nunchaku, diffusers, deepcompressor"
    )
    convert.add_argument("target", type=Path, help="the .safetensors file to write")
    convert.add_argument("--to", required=True, choices=("nunchaku", "comfy", "bf16", "svdquant"))
    convert.add_argument("--overwrite", action="store_true", help="replace the target if it exists")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Run one command; return the exit code."""
    options = parse(argv)
    try:
        _convert(options)
    except _import("errors").SVDQuantError as error:
        sys.stderr.write(f"\nerror: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; nothing was written\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
