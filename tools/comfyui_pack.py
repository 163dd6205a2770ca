"""Puts this pack where a host finds it: BASE/custom_nodes/ComfyUI-SVDQuant. Standard library only."""

import shutil
from pathlib import Path

from comfyui_source import ROOT

PACK_NAME = "ComfyUI-SVDQuant"  # dashed, as users have it: only relative imports work from such a folder

# what a user's copy holds; everything else of the checkout (tests, .dev, demo) stays out of the host's sight
PACK_PARTS = ("__init__.py", "pyproject.toml", "nodes", "svdq_core", "kernels", "web", "locales", "workflows")


def install_pack(base: Path) -> Path:
    """Link the parts of the pack into BASE/custom_nodes, or copy where the system allows no links."""
    pack = base / "custom_nodes" / PACK_NAME
    if pack.exists():
        shutil.rmtree(pack)
    pack.mkdir(parents=True)
    for part in PACK_PARTS:
        source, target = ROOT / part, pack / part
        if not source.exists():
            continue
        try:
            target.symlink_to(source, target_is_directory=source.is_dir())
        except OSError:  # Windows without developer mode
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(source, target)
    return pack
