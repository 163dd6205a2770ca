"""What the commands of a user share."""

import os
import sys

import command_line


def test_the_typed_name_is_taken_once(monkeypatch):
    monkeypatch.setenv(command_line.TYPED, "python dev.py convert")
    assert command_line.typed("python svdq_core") == "python dev.py convert"
    assert command_line.TYPED not in os.environ, "programs started from here have names of their own"
    assert command_line.typed("python svdq_core") == "python svdq_core"


def test_missing_packages_are_named_with_the_python_to_take(monkeypatch):
    monkeypatch.setattr(command_line, "find_spec", lambda name: object() if name == "numpy" else None)
    missing = command_line.missing_packages()
    text = command_line.use_comfyui_python(missing, "convert IN OUT")
    assert f"{sys.executable} " in text and "has no torch and no safetensors" in text
    assert "python dev.py convert IN OUT" in text and "python_embeded" in text
