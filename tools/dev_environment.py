"""The Python environment of `dev.py`: made once in .dev/, checked by a stamp, rebuilt when it broke half way.

Standard library only.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from chromium import find_chromium
from comfyui_source import DEV_FOLDER

DEFAULT_TORCH = "torch==2.13.0"
TEST_REQUIREMENTS = ("pytest>=9,<10", "pytest-xdist>=3.8,<4", "hypothesis>=6")
TEST_REQUIREMENTS += ("ruff==0.17.6", "pyright[nodejs]==1.1.414")
FRONT_END = "comfyui-frontend-package==1.47.12"  # the host's own pin, whose page the browser tests know
OLDEST_PYTHON = (3, 10)
# of 13000 files a run of the tests imports a part, and that is compiled when it is imported
PIP_INSTALL = ("-m", "pip", "install", "--no-compile", "--disable-pip-version-check")


@dataclass(frozen=True)
class OptionalPackage:
    """A package that is taken where the index has it, and done without elsewhere."""

    module: str
    requirement: str
    without: str


def optional_requirements() -> tuple[OptionalPackage, ...]:
    """What may be missing, on this system."""
    found = []
    if platform.system() == "Linux":
        # the release that torch 2.13 itself asks for; its CPU build does not bring it along
        found.append(OptionalPackage("triton", "triton==3.7.1", "kernel tests that need Triton are skipped"))
    if find_chromium():  # 74 MB that nothing could use without a browser
        without = "browser tests are skipped"
        found.append(OptionalPackage("playwright", "playwright==1.65.0", without))
        found.append(OptionalPackage("comfyui_frontend_package", FRONT_END, without))
    return tuple(found)


class SetupError(RuntimeError):
    """The environment cannot be made; the text says why and what to do."""


def say(text: str) -> None:
    """One line of progress."""
    print(f"dev: {text}", flush=True)


def python_of(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def clean_variables() -> dict[str, str]:
    """This process's environment without what would bend another Python's import path."""
    bent = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "__PYVENV_LAUNCHER__")
    return {name: value for name, value in os.environ.items() if name not in bent}


def run(*command: str | Path, quiet: bool = False) -> subprocess.CompletedProcess:
    """Run a command to its end; its output is shown unless quiet."""
    return subprocess.run(
        [str(part) for part in command], env=clean_variables(), capture_output=quiet, text=True, check=False
    )


def digest(*parts: object) -> str:
    """Fingerprint of everything that the installed packages depend on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def check_version(python: Path) -> str:
    """Version of an interpreter, like "3.11"; raise SetupError if it does not run or is too old."""
    try:
        answer = run(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])", quiet=True)
    except OSError as error:
        raise SetupError(f"{python} does not start: {error.strerror}. Give a Python interpreter.") from error
    version = answer.stdout.strip()
    if answer.returncode or not re.fullmatch(r"\d+\.\d+", version):
        raise SetupError(f"{python} does not answer like a Python: {answer.stderr.strip() or version}")
    if tuple(int(part) for part in version.split(".")) < OLDEST_PYTHON:
        raise SetupError(f"{python} is Python {version}; 3.10 or newer is needed (tested: 3.11).")
    return version


class Environment:
    """A virtual environment in .dev/, alone or as a layer over another one.

    Args:
        over: interpreter whose packages are used as they are; what it lacks goes into our own layer, nothing into it.
              None: everything is installed here.
    """

    def __init__(self, over: Path | None = None, parent: Path = DEV_FOLDER):
        self.over = over
        self.folder = parent / ("venv" if over is None else f"venv-over-{digest(str(over))[:8]}")
        self.python = python_of(self.folder)
        self.stamp = self.folder / "installed.json"
        self.unfinished = self.folder / "unfinished"

    def read_stamp(self) -> dict:
        """What the last complete installation wrote, or {}."""
        if self.unfinished.exists() or not self.stamp.exists():
            return {}
        try:
            return json.loads(self.stamp.read_text(encoding="utf-8"))
        except ValueError:
            return {}

    def works(self) -> bool:
        """Whether there is an environment that no interrupted installation left half done and whose Python runs."""
        if not self.python.exists() or self.unfinished.exists():
            return False
        return run(self.python, "-c", "import pip", quiet=True).returncode == 0

    def create(self) -> None:
        """Make the empty environment, in place of a broken one."""
        if self.works():
            return
        if self.folder.exists():
            say(f"{self.folder} is incomplete (an interrupted set-up?); making it anew")
            discarded = self.folder.with_name(self.folder.name + ".discarded")
            shutil.rmtree(discarded, ignore_errors=True)
            self.folder.rename(
                discarded
            )  # first out of the way, so that half a removal is not taken for an environment
            shutil.rmtree(discarded)
        base = self.over or Path(sys.executable)
        say(f"making a virtual environment in {self.folder} (Python {check_version(base)})")
        self.folder.mkdir(parents=True)
        self.unfinished.touch()
        if run(base, "-m", "venv", self.folder).returncode:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise SetupError(
                f"{base} cannot make virtual environments (its words are above). On Debian and Ubuntu the package "
                "python3-venv is missing."
            )
        if self.over:
            self._add_layer_below(self.over)
        self.unfinished.unlink()

    def _add_layer_below(self, over: Path) -> None:
        code = "import sysconfig; print(sysconfig.get_path('purelib')); print(sysconfig.get_path('platlib'))"
        below = dict.fromkeys(run(over, "-c", code, quiet=True).stdout.splitlines())
        own = Path(run(self.python, "-c", code, quiet=True).stdout.splitlines()[0])
        # addsitedir rather than the bare path: it follows the .pth files over there, e.g. of editable installs
        line = "import site; " + "; ".join(f"site.addsitedir({path!r})" for path in below)
        (own / "layer_below.pth").write_text(line + "\n", encoding="utf-8")

    def install(self, requirements: list[str]) -> None:
        """Install what is missing, unless the stamp says that exactly this is there.

        Raises:
            SetupError: pip failed.
        """
        wanted = digest(requirements, optional_requirements())
        if self.read_stamp().get("digest") == wanted:
            return
        was_complete = bool(self.read_stamp())
        self.unfinished.touch()
        say(f"installing {len(requirements)} requirements with pip (minutes at the first time)")
        if run(self.python, *PIP_INSTALL, *requirements).returncode:
            if was_complete:  # pip gave up in good order, most likely before it changed anything: keep what there is
                self.unfinished.unlink()
            raise SetupError(
                "pip could not install everything (its words are above). Without a network connection the first set-up "
                "cannot work; if it was another reason, solve it and run the same command again. If there is no torch "
                "for your Python, start dev.py with Python 3.11."
            )
        missing = [package.module for package in optional_requirements() if not self._install_optional(package)]
        # the stamp first: whoever is interrupted between the two lines repeats a check, never trusts a half set-up
        self.stamp.write_text(json.dumps({"digest": wanted, "missing": missing}), encoding="utf-8")
        self.unfinished.unlink()

    def _install_optional(self, package: OptionalPackage) -> bool:
        found = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package.module!r}) is None)"
        if run(self.python, "-c", found, quiet=True).returncode == 0:
            return True
        say(f"installing {package.requirement}")
        return run(self.python, *PIP_INSTALL, package.requirement).returncode == 0

    def note_missing(self) -> None:
        """Say what optional packages the environment does without."""
        for package in optional_requirements():
            if package.module in self.read_stamp().get("missing", ()):
                say(f"without {package.requirement}: {package.without} (to try again, delete {self.stamp})")
