"""One command for everything: sets up what is missing, then runs it."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036  (somebody's python3 may be older; tell them before an import fails)
    sys.exit("dev.py needs Python 3.10 or newer; this is " + sys.version.split()[0])

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

from comfyui_source import (  # noqa: E402  (the tools are a folder beside this file)
    DEV_FOLDER,
    HOST_FOLDER,
    HOST_VERSION,
    HostSourceError,
    check_host,
    fetch_archive,
    host_requirements,
    unpack_host,
)
from dev_environment import (  # noqa: E402
    DEFAULT_TORCH,
    TEST_REQUIREMENTS,
    Environment,
    SetupError,
    say,
)

DEFAULT = "default"  # the value of --torch and --python that takes a kept choice back
CHOICES = DEV_FOLDER / "choices.json"  # --torch and --python, as last given


@dataclass(frozen=True)
class Command:
    """What Python is called with, in the environment; {host}, {base} and {output} are filled in."""

    does: str
    arguments: tuple[str, ...]
    in_checkout: bool = False  # run in this folder instead of the caller's
    set_up: bool = True  # otherwise it runs in the Python that was called, as it is


_DEMO = ("{root}/demo/run.py", "--host", "{host}", "--base", "{base}", "--output", "{output}")
COMMANDS = {
    "demo": Command("run the main job in a real ComfyUI; writes images and a report", _DEMO),
    "test": Command("run the tests; further arguments go to pytest", ("-m", "pytest"), in_checkout=True),
    "evaluate": Command(
        "measure the quality of every way to quantize the demo's FLUX; --help tells how",
        ("{root}/demo/evaluate/run.py", "--output", "{root}/output/evaluate"),
    ),
    "bench": Command(
        "time one layer, or with --step a whole step, in every mode on a GPU", ("{root}/benchmarks/layers.py",)
    ),
    "compile": Command(
        "compile every kernel with every Triton that the pack supports; needs no GPU",
        ("{root}/tools/compile_kernels.py",),
    ),
    "convert": Command("write an SVDQuant file in another format; --help tells how", ("{root}/svdq_core", "convert")),
    "quantize": Command(
        "make an SVDQuant file of a 16-bit FLUX.1 or PixArt file; --help tells how",
        ("{root}/svdq_core", "quantize"),
    ),
    "check": Command(
        "say what this machine will do with SVDQuant files; for the Python of your ComfyUI",
        ("{root}/tools/check_environment.py",),
        set_up=False,
    ),
    "migrate-workflow": Command(
        "IN OUT: turn a workflow of ComfyUI-nunchaku's FLUX nodes into one of this pack's",
        ("{root}/tools/migrate_workflow.py",),
        set_up=False,
    ),
}

EXAMPLES = """
The first run sets everything up in .dev/ of this folder: a virtual environment and ComfyUI. Later runs start at once
and need no network. To begin afresh, delete .dev/.

On a machine with a GPU, name the torch you want, with pip's own options for where it comes from in the environment:
    PIP_EXTRA_INDEX_URL=<torch's index for your CUDA or ROCm> python dev.py test --torch torch==2.13.0
or use the packages of an environment that has it (nothing is installed into it; what it lacks goes into .dev/):
    python dev.py test --python /path/to/ComfyUI/venv/bin/python --host /path/to/ComfyUI
"""


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into our own options and the arguments of the command."""
    listing = "".join(f"\n  {name:10}{command.does}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="dev.py",
        usage="python dev.py COMMAND [--host DIR] [--torch SPEC] [--python EXE] [arguments of the command]",
        description=f"{__doc__}\n\ncommands:{listing}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=not (argv and argv[0] in COMMANDS),  # after a command, --help is the command's
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the above")
    parser.add_argument(
        "--host", type=Path, metavar="DIR", help="an installed ComfyUI to use (or COMFYUI_PATH); never written to"
    )
    kept = f'kept for later runs until "{DEFAULT}" is given'
    parser.add_argument("--torch", metavar="SPEC", help=f"torch requirement instead of {DEFAULT_TORCH}; {kept}")
    parser.add_argument("--python", metavar="EXE", help=f"build on the packages of this Python; {kept}")
    return parser.parse_known_args(argv)


def read_choices(options: argparse.Namespace) -> dict[str, str | None]:
    """--torch and --python: as given now, else as given last; None is the default."""
    try:
        choices = json.loads(CHOICES.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        choices = {}
    now = {"torch": options.torch, "python": options.python}
    if options.python not in (None, DEFAULT):
        now["python"] = str(Path(options.python).absolute())  # not resolved: a link makes the environment
    kept = {name: now[name] or choices.get(name) for name in now}
    return {name: None if value == DEFAULT else value for name, value in kept.items()}


def chosen_host(options: argparse.Namespace) -> Path | None:
    """A ComfyUI that the user named, checked; None: our own."""
    named = options.host or os.environ.get("COMFYUI_PATH")
    return check_host(Path(named)) if named else None


def set_up(options: argparse.Namespace) -> tuple[Path, Path]:
    """Provide environment and host, doing only what is missing; return (python, host)."""
    host, choices = chosen_host(options), read_choices(options)
    over = Path(choices["python"]) if choices["python"] else None
    environment = Environment(over)
    environment.create()
    if host is None:
        host = HOST_FOLDER
        if not host.is_dir():
            say(f"fetching ComfyUI {HOST_VERSION}")
            unpack_host(fetch_archive(environment.python, DEV_FOLDER / "downloads"), host)
    torch = choices["torch"] or (DEFAULT_TORCH if over is None else "torch")
    environment.install([torch, *host_requirements(host), *TEST_REQUIREMENTS])
    environment.note_missing()
    CHOICES.parent.mkdir(parents=True, exist_ok=True)
    CHOICES.write_text(json.dumps(choices), encoding="utf-8")  # only now: what failed is not kept
    return environment.python, host


def run_command(command: Command, python: Path, host: Path, rest: list[str]) -> int:
    """Run a command of the table; return its exit code."""
    places = {"root": ROOT, "host": host, "base": DEV_FOLDER / "demo", "output": ROOT / "output" / "demo"}
    arguments = [argument.format(**places) for argument in command.arguments]
    variables = dict(os.environ, COMFYUI_PATH=str(host))
    variables.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # DECISIONS 10
    folder = ROOT if command.in_checkout else None
    return subprocess.run([str(python), *arguments, *rest], env=variables, cwd=folder, check=False).returncode


def main(argv: list[str]) -> int:
    """Set up, run, return the exit code."""
    options, rest = parse(argv)
    try:
        command = COMMANDS[options.command]
        python, host = set_up(options) if command.set_up else (Path(options.python or sys.executable), HOST_FOLDER)
        return run_command(command, python, host, rest)
    except (HostSourceError, SetupError) as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
