"""What users and developers run from the command line.

check, convert, quantize and migrate-workflow run in the Python that calls them and install nothing: take the one that
runs ComfyUI. demo, test, evaluate, bench and compile need a git clone and set up a development environment in .dev/.
"""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036  (somebody's python3 may be older; tell them before an import fails)
    sys.exit("dev.py needs Python 3.10 or newer; this is " + sys.version.split()[0])

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

from comfyui_source import (  # noqa: E402
    DEV_FOLDER,
    HOST_FOLDER,
    HOST_VERSION,
    HostSourceError,
    check_host,
    fetch_archive,
    host_requirements,
    unpack_host,
)
from command_line import TYPED  # noqa: E402  (the tools are a folder beside this file)
from dev_environment import (  # noqa: E402
    DEFAULT_TORCH,
    TEST_REQUIREMENTS,
    Environment,
    SetupError,
    say,
)
from front_end import front_end_folder  # noqa: E402

DEFAULT = "default"  # the value of --torch and --python that takes a kept choice back
CHOICES = DEV_FOLDER / "choices.json"  # --torch and --python, as last given


@dataclass(frozen=True)
class Command:
    """What Python is called with; {host}, {base} and {output} are filled in.

    Args:
        developer: it needs a git clone, and runs in the development environment, which is set up first. Otherwise it
            runs in the Python that was called, as it is.
        needs: a file that release archives do not have.
    """

    does: str
    arguments: tuple[str, ...]
    in_checkout: bool = False  # run in this folder instead of the caller's
    developer: bool = False
    needs: str = ""


_DEMO = ("{root}/demo/run.py", "--host", "{host}", "--base", "{base}", "--output", "{output}")
COMMANDS = {
    "check": Command(
        "say what this machine will do with SVDQuant files, and which to download; --report FILE: how fast",
        ("{root}/tools/check_environment.py",),
    ),
    "convert": Command("IN OUT: write an SVDQuant file in another format", ("{root}/svdq_core", "convert")),
    "quantize": Command("IN OUT: make an SVDQuant file of a 16-bit model", ("{root}/svdq_core", "quantize")),
    "migrate-workflow": Command(
        "IN OUT: turn a workflow made with ComfyUI-nunchaku into one for this pack",
        ("{root}/tools/migrate_workflow.py",),
    ),
    "demo": Command(
        "quantize small models and draw with them in a real ComfyUI; writes pictures and a report",
        _DEMO,
        developer=True,
        needs="demo/run.py",
    ),
    "test": Command(
        "run the tests; further arguments go to pytest",
        ("-m", "pytest", "-n", "auto", "--durations=15", "--durations-min=10"),  # how many: tests/workers.py
        in_checkout=True,
        developer=True,
        needs="tests/conftest.py",
    ),
    "evaluate": Command(
        "measure the quality of every way to quantize the demo's FLUX",
        ("{root}/research/evaluate/start.py", "--output", "{root}/output/evaluate"),
        developer=True,
        needs="research/evaluate/start.py",
    ),
    "bench": Command(
        "time one layer, or with --step a whole step, in every mode on a GPU",
        ("{root}/benchmarks/layers.py",),
        developer=True,
        needs="benchmarks/layers.py",
    ),
    "compile": Command(
        "compile every kernel with every Triton that the pack supports; needs no GPU",
        ("{root}/tools/compile_kernels.py",),
        developer=True,
        needs="tests/kernels/cross_compile.py",
    ),
}
HELP = ("-h", "--help")

EXAMPLES = """
demo, test, evaluate, bench and compile make a virtual environment and fetch ComfyUI the first time: about 3 GB, into
.dev/ of this folder. Later runs start at once and need no network. To begin afresh, delete .dev/.

On a machine with a GPU, name the torch you want, with pip's own options for where it comes from in the environment:
    PIP_EXTRA_INDEX_URL=<torch's index for your CUDA or ROCm> python dev.py test --torch torch==2.13.0
or use the packages of an environment that has it (nothing is installed into it; what it lacks goes into .dev/):
    python dev.py test --python /path/to/ComfyUI/venv/bin/python --host /path/to/ComfyUI
"""


def typed_name() -> str:
    """This script as the user called it: python dev.py, or by its path."""
    return f"python {sys.argv[0] if Path(sys.argv[0]).name == 'dev.py' else 'dev.py'}"


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into our own options and the arguments of the command."""
    listing = "".join(f"\n  {name:18}{command.does}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog=typed_name(),
        usage=f"{typed_name()} COMMAND [--host DIR] [--torch SPEC] [--python EXE] [arguments of the command]",
        description=f"{__doc__}\n\ncommands:{listing}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=not (argv and argv[0] in COMMANDS),  # after a command, --help is that command's
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the above")
    parser.add_argument(
        "--host", type=Path, metavar="DIR", help="an installed ComfyUI to use (or COMFYUI_PATH); never written to"
    )
    kept = f'kept for later runs until "{DEFAULT}" is given'
    parser.add_argument("--torch", metavar="SPEC", help=f"torch requirement instead of {DEFAULT_TORCH}; {kept}")
    parser.add_argument("--python", metavar="EXE", help=f"build on the packages of this Python; {kept}")
    page = "release of ComfyUI's page (comfyui-frontend-package), or a folder with one, that the browser tests open"
    parser.add_argument("--front-end", metavar="VERSION", help=page)
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


def chosen_torch(choices: dict[str, str | None]) -> str:
    """The torch requirement of the environment."""
    return choices["torch"] or (DEFAULT_TORCH if choices["python"] is None else "torch")


def announce(environment: Environment, host: Path | None, choices: dict[str, str | None]) -> None:
    """Say, before anything is fetched, what a first run fetches and where it goes."""
    fetched = [] if environment.read_stamp() else [chosen_torch(choices), "the packages of ComfyUI and of the tests"]
    if host is None and not HOST_FOLDER.is_dir():
        fetched.append(f"ComfyUI {HOST_VERSION}")
    if not fetched:
        return
    size = "about 3 GB on the disk" if environment.over is None else f"what {environment.over} lacks of them"
    say(f"setting up a development environment, once: {', '.join(fetched)}")
    say(f"it goes into {environment.folder.parent} ({size}, some minutes) and nowhere else; Ctrl+C stops it")


def set_up(options: argparse.Namespace) -> tuple[Path, Path]:
    """Provide environment and host, doing only what is missing; return (python, host)."""
    host, choices = chosen_host(options), read_choices(options)
    over = Path(choices["python"]) if choices["python"] else None
    environment = Environment(over)
    announce(environment, host, choices)
    environment.create()
    if host is None:
        host = HOST_FOLDER
        if not host.is_dir():
            say(f"fetching ComfyUI {HOST_VERSION}")
            unpack_host(fetch_archive(environment.python, DEV_FOLDER / "downloads"), host)
    environment.install([chosen_torch(choices), *host_requirements(host), *TEST_REQUIREMENTS])
    environment.note_missing()
    CHOICES.parent.mkdir(parents=True, exist_ok=True)
    CHOICES.write_text(json.dumps(choices), encoding="utf-8")  # only now: what failed is not kept
    return environment.python, host


def why_a_clone_is_needed(name: str) -> str:
    """The sentence for a developer's command in a release archive; "" where everything is there."""
    command = COMMANDS[name]
    if not command.developer or (ROOT / command.needs).exists():
        return ""
    address = re.search(r'^Repository = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    clone = f"git clone {address[1]}" if address else "git clone"
    return f"{name} needs a git clone: release archives hold no tests, demo or benchmarks. Get one with: {clone}"


def show_help(name: str) -> int:
    """Help of a developer's command where the environment that could print it is not there yet."""
    command = COMMANDS[name]
    print(f"usage: {typed_name()} {name} [arguments]\n\n{name}: {command.does}")
    script = Path(command.arguments[0].format(root=ROOT, host="", base="", output=""))
    if script.is_file():
        print("\n" + (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""))
    print(f"\n{EXAMPLES.strip()}")
    return 0


def run_command(name: str, command: Command, python: Path, host: Path, rest: list[str]) -> int:
    """Run a command of the table; return its exit code."""
    places = {"root": ROOT, "host": host, "base": DEV_FOLDER / "demo", "output": ROOT / "output" / "demo"}
    arguments = [argument.format(**places) for argument in command.arguments]
    variables = dict(os.environ, **{TYPED: f"{typed_name()} {name}"})
    if command.developer:
        variables["COMFYUI_PATH"] = str(host)
    variables.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # DECISIONS 10
    folder = ROOT if command.in_checkout else None
    return subprocess.run([str(python), *arguments, *rest], env=variables, cwd=folder, check=False).returncode


def main(argv: list[str]) -> int:
    """Set up what the command needs, run it, return the exit code."""
    options, rest = parse(argv)
    name, command = options.command, COMMANDS[options.command]
    try:
        why_not = why_a_clone_is_needed(name)
        if why_not:
            say(why_not)
            return 2
        if not command.developer:
            python = sys.executable if options.python in (None, DEFAULT) else options.python
            if options.host:  # quantize asks it what is in a file
                os.environ["COMFYUI_PATH"] = str(options.host)
            return run_command(name, command, Path(python), HOST_FOLDER, rest)
        if any(argument in HELP for argument in rest):
            environment = Environment(None)
            if command.arguments is _DEMO or not environment.read_stamp():  # its options are given here
                return show_help(name)
            return run_command(name, command, environment.python, HOST_FOLDER, rest)
        python, host = set_up(options)
        if options.front_end:
            os.environ["COMFYUI_FRONT_END"] = str(front_end_folder(python, options.front_end))
        return run_command(name, command, python, host, rest)
    except (HostSourceError, SetupError) as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
