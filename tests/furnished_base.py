"""Makes a host's folder look like that of a user who has every file that the workflows name, and the demo's."""

import importlib.util
from pathlib import Path

from PIL import Image
from workflow_files import write

from svdquant_pack import ROOT


def furnish(base: Path) -> None:
    """Put the demo's models and nodes, and an empty file for each model of the workflows, into BASE.

    Lists, widgets and the host's checks then work as with the real files; only loading one fails.
    """
    for workflow in write.workflows():
        for file in workflow.files:
            path = base / "models" / file.folder / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (base / "input").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (90, 120, 160)).save(base / "input" / "example.png")
    spec = importlib.util.spec_from_file_location("demo_install", ROOT / "demo" / "install.py")
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    install.install_models(base)
    install.install_nodes(base)
