"""Files into SVDQuant files, from the command line.

python svdq_core convert IN OUT --to nunchaku|comfy|bf16|svdquant
python svdq_core quantize IN OUT --precision int4|nvfp4|int8

quantize asks ComfyUI what is in a file, where one is found or named; everything else works without.
Standard library only until the arguments are read: --help works in every Python.
"""

import argparse
import importlib
import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

command_line = importlib.import_module("command_line")  # tools of dev.py's, in the folder above
library = importlib.import_module("comfyui_library")
BAR_WIDTH = 30
# as svdq_core.quantize.spec has them, which takes torch to import
PRECISIONS = ("int4", "nvfp4", "int8")
ACTIVATIONS = ("w4a4", "w4a8")
PRESETS = ("fast", "best", "refine")


def _import(name: str) -> ModuleType:
    """A module of this pack, whose folder has a dash in its name and is no package by itself."""
    return importlib.import_module(f"svdquant_pack.svdq_core.{name}")


def _show_progress(done: int, total: int, name: str) -> None:
    filled = BAR_WIDTH * done // max(total, 1)
    bar = "#" * filled + "." * (BAR_WIDTH - filled)
    sys.stderr.write(f"\r[{bar}] {100 * done // max(total, 1):3d} % {name[-40:]:40}")
    sys.stderr.write("\n" if done == total else "")
    sys.stderr.flush()


def _convert(options: argparse.Namespace) -> None:
    show = _show_progress if sys.stderr.isatty() else lambda *step: None
    done = _import("convert").convert(
        options.source,
        options.target,
        options.to,
        overwrite=options.overwrite,
        on_progress=show,
        strict=options.strict,
        base=options.base,
    )
    for note in done.notes:
        sys.stdout.write(f"note: {note}\n")
    sys.stdout.write(
        f"{options.target}: {done.tensors} tensors, {done.nbytes / 2**30:.2f} GiB, from {done.source_title} in "
        f"{done.seconds:.1f} s\n"
    )


def _quantize(options: argparse.Namespace) -> None:
    command, overrides = _import("quantize.command"), _import("quantize.overrides").Overrides
    refines = options.method == _import("quantize.spec").REFINE
    spec = _import("quantize.spec").QuantSpec(
        options.precision,
        options.activations,
        options.rank,
        "best" if refines else options.method or "fast",
        options.seed,
    )
    request = command.QuantizeRequest(
        options.source,
        options.target,
        spec,
        overrides.parse(" ".join(options.keep), options.keep_worst, options.error_limit),
        options.calibration,
        options.device,
        options.overwrite,
        _import("quantize.refine").RefineSpec(seed=options.seed) if refines else None,
        prefers_best=options.method is None,
    )
    show = _show_progress if sys.stderr.isatty() else lambda *step: None
    command.quantize_file(request, _write_line, show, _find_opener(options))


def _find_opener(options: argparse.Namespace) -> Callable:
    """What opens the file: ComfyUI, or where there is none, what this pack knows by itself."""
    alone = _import("quantize.source_model").open_described
    try:
        folder = library.find_comfyui(options.host)
    except library.HostSourceError as error:
        raise _import("errors").SVDQuantError(str(error)) from error
    if folder is None:
        _write_line("note: no ComfyUI was found (--host names one): only models that this pack describes are known")
        return alone
    without_gpu = _import("quantize.command").is_without_gpu(options.device)
    problem = library.import_comfyui(folder, "cpu" if without_gpu else options.device)
    if problem:
        _write_line(f"note: {problem}; only models that this pack describes are known now")
        return alone
    # the one way from here to ComfyUI, which the rooms themselves never go
    return importlib.import_module("svdquant_pack.nodes.host.quantize.file_source").open_source


def _write_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    program = command_line.typed("python svdq_core")
    for command in ("convert", "quantize"):  # dev.py hands on its own command, which is ours
        program = (program or "").removesuffix(f" {command}")
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="write an SVDQuant model in another format")
    convert.add_argument(
        "source",
        type=Path,
        metavar="IN",
        help="a .safetensors file, or a folder of nunchaku, diffusers, deepcompressor",
    )
    convert.add_argument("target", type=Path, metavar="OUT", help="the .safetensors file to write")
    convert.add_argument(
        "--to",
        required=True,
        choices=("nunchaku", "comfy", "bf16", "svdquant"),
        help="the format: nunchaku's, ComfyUI's own, the 16-bit model that the file stands for, or this pack's",
    )
    convert.add_argument("--overwrite", action="store_true", help="replace the target if it exists")
    convert.add_argument(
        "--base", type=Path, metavar="FILE", help="a second file with what is not quantized, for MiniMax H3"
    )
    convert.add_argument(
        "--strict", action="store_true", help="write nothing that only this pack reads; what is rounded is lost"
    )
    convert.set_defaults(run=_convert, left="nothing was written")
    _add_quantize(commands)
    return parser.parse_args(argv)


def _add_quantize(commands: argparse._SubParsersAction) -> None:
    quantize = commands.add_parser("quantize", help="make an SVDQuant file of a 16-bit diffusion model")
    quantize.add_argument("source", type=Path, metavar="IN", help="a .safetensors file, or a folder of diffusers")
    quantize.add_argument("target", type=Path, metavar="OUT", help="the .safetensors file to write")
    quantize.add_argument(
        "--host",
        metavar="DIR",
        help="the ComfyUI whose model classes to use (COMFYUI_PATH, or the one around); or none",
    )
    quantize.add_argument("--precision", choices=PRECISIONS, default="int4", help="of the weights (int4)")
    quantize.add_argument(
        "--activations",
        choices=ACTIVATIONS,
        default="w4a8",
        help="the mode to tune for; files run in both (w4a8)",
    )
    quantize.add_argument("--rank", type=int, default=32, help="of the 16-bit branch, 0 to 256 in steps of 16 (32)")
    method = (
        "fast takes a quarter of the time, refine is slowest and closest (best; fast without ComfyUI and calibration)"
    )
    quantize.add_argument("--method", choices=PRESETS, help=method)
    quantize.add_argument("--calibration", type=Path, metavar="FILE", help="inputs that Save Calibration recorded")
    quantize.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="PATTERN",
        help="layers to leave in 16 bits, as '*.linear2', or to make in another precision, as '*.linear2=int8'",
    )
    quantize.add_argument("--keep-worst", type=int, default=0, metavar="N", help="leave the N worst in 16 bits")
    quantize.add_argument("--error-limit", type=float, default=0.0, metavar="E", help="leave worse ones in 16 bits")
    quantize.add_argument("--device", default="", help="cuda, cuda:1, ... or cpu (a GPU if there is one)")
    quantize.add_argument(
        "--seed", type=int, default=0, help="the same seed on the same machine writes the same file (0)"
    )
    quantize.add_argument("--overwrite", action="store_true", help="replace the target if it exists")
    quantize.set_defaults(run=_quantize, left="finished layers are kept; the same command goes on from there")


def main(argv: list[str]) -> int:
    """Run one command; return the exit code."""
    options = parse(argv)
    missing = command_line.missing_packages()
    if missing:
        sys.stderr.write(f"error: {command_line.use_comfyui_python(missing, ' '.join(argv))}\n")
        return 1
    for stream in (sys.stdout, sys.stderr):  # names of files may hold what a terminal cannot print
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # ComfyUI and what it imports say a lot
    logging.getLogger("svdquant").setLevel(logging.INFO)
    try:
        options.run(options)
    except _import("errors").SVDQuantError as error:
        sys.stderr.write(f"\nerror: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted; {options.left}\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
