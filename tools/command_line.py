"""What the commands of a user share: their name in a usage line, and what to say in a Python without torch.

Standard library only.
"""

import os
import platform
import sys
from importlib.util import find_spec

TYPED = "SVDQUANT_TYPED"  # what the user typed, as dev.py hands it on: "python dev.py convert"
NEEDED = ("torch", "safetensors", "numpy")


def typed(default: str | None = None) -> str | None:
    """The name that a usage line begins with: what the user typed if dev.py was called, else `default`.

    Takes it out of the environment, so that programs started from here do not go by this name.
    """
    return os.environ.pop(TYPED, default)


def missing_packages() -> list[str]:
    """What this Python lacks of the packages that reading and writing models takes."""
    return [name for name in NEEDED if find_spec(name) is None]


def use_comfyui_python(missing: list[str], command: str) -> str:
    """What to do in a Python that lacks packages.

    Args:
        command: what follows dev.py, as "convert IN OUT --to comfy".
    """
    return (
        f"{sys.executable} (Python {platform.python_version()}) has no {' and no '.join(missing)}. "
        "Run it with the Python of your ComfyUI, for example\n"
        f"    ComfyUI/venv/bin/python dev.py {command}                 (Linux, macOS)\n"
        f"    ..\\..\\..\\python_embeded\\python.exe dev.py {command}     (Windows portable, from the pack's folder)"
    )
