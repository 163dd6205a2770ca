"""ruff and pyright over the whole project, so that one test command says everything."""

import importlib.util
import subprocess
import sys

import pytest

from svdquant_pack import ROOT


def check(*command):
    """Run `python -m command` in the checkout; its findings are the assertion's text."""
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"\n{result.stdout}{result.stderr}"


def needs(module):
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"{module} is not installed (`python dev.py test` installs it)")


@needs("ruff")
def test_ruff_finds_nothing():
    check("ruff", "check", "--no-cache")


@needs("ruff")
def test_files_are_formatted():
    check("ruff", "format", "--check", "--no-cache")


@needs("pyright")
def test_types_fit():
    check("pyright", "--pythonpath", sys.executable)
