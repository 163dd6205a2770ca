"""Where the host keeps models, and where this pack may write."""

from pathlib import Path

import folder_paths

from ...svdq_core.checkpoint.container import LEGACY_FILES
from ...svdq_core.errors import SVDQuantError

MODEL_KIND = "diffusion_models"


def list_models() -> list[str]:
    """Safetensors files and legacy folders of diffusion_models, as the user's list shows them."""
    names = [name for name in folder_paths.get_filename_list(MODEL_KIND) if name.endswith(".safetensors")]
    legacy = {_legacy_name(name) for name in names if Path(name).name in LEGACY_FILES} - {None}
    files = [name for name in names if _legacy_name(name) not in legacy or Path(name).name not in LEGACY_FILES]
    return sorted(files + list(legacy))


def _legacy_name(name: str) -> str | None:
    parent = Path(name).parent
    return None if parent == Path() else str(parent)


def model_path(name: str) -> str:
    """Full path of an entry of list_models.

    Raises:
        SVDQuantError: there is no such file or folder any more.
    """
    path = folder_paths.get_full_path(MODEL_KIND, name)
    if path is not None:
        return path
    for root in folder_paths.get_folder_paths(MODEL_KIND):
        folder = Path(root) / name
        if folder.is_dir() and folder.resolve().is_relative_to(Path(root).resolve()):
            return str(folder)
    raise SVDQuantError(f"{name}: not found in the folders of diffusion models. Refresh the page and choose again.")


def lora_path(name: str) -> str:
    return folder_paths.get_full_path_or_raise("loras", name)


def list_loras() -> list[str]:
    return folder_paths.get_filename_list("loras")


def output_path(name: str, overwrite: bool) -> Path:
    """Path of a new model file below output/diffusion_models, which the host lists among its models.

    Args:
        name: file name without ending; subfolders with "/" are allowed.

    Raises:
        SVDQuantError: the name leads out of the folder, or the file exists and overwrite is False.
    """
    root = Path(folder_paths.get_output_directory()) / MODEL_KIND
    path = root / f"{name.strip()}.safetensors"
    if not name.strip() or not path.resolve().is_relative_to(root.resolve()):
        raise SVDQuantError(f"{name!r} is no file name inside {root}. Use letters, digits, '-' and '/' for subfolders.")
    if path.exists() and not overwrite:
        raise SVDQuantError(f"{path} exists already. Choose another name, or switch overwrite on.")
    return path


def fingerprint(path: str) -> str:
    """Changes when a file, or a legacy folder's file, is replaced."""
    files = [Path(path)] if Path(path).is_file() else [Path(path) / name for name in LEGACY_FILES]
    return "".join(f"{f}:{f.stat().st_mtime_ns}:{f.stat().st_size};" for f in files if f.is_file())
