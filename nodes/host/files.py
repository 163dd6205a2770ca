"""Where the host keeps models, and where this pack may write."""

import itertools
import re
from pathlib import Path

import folder_paths

from ...svdq_core.checkpoint.container import LEGACY_FILES, NATIVE_FILES
from ...svdq_core.errors import SVDQuantError
from ...svdq_core.file_names import check_name

MODEL_KIND = "diffusion_models"
FILE_ENDINGS = (".safetensors", ".sft")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
_FOLDER_ENDINGS = (".safetensors", ".pt", ".json")  # of files that a model in a folder consists of


def list_models() -> list[str]:
    """Files and folders of diffusion_models that may be SVDQuant models, as the user's list shows them.

    Those that are called so come first. A folder is listed in place of the files that belong together in it: nunchaku's
    two, deepcompressor's four, or the shards of diffusers.
    """
    names = [Path(name) for name in folder_paths.get_filename_list(MODEL_KIND)]
    folders = {str(name.parent) for name in names if _belongs_to_folder(name)}
    files = [str(name) for name in names if name.suffix in FILE_ENDINGS and not _belongs_to_folder(name)]
    return sorted(files + list(folders), key=lambda name: (not _looks_quantized(name), name))


def _looks_quantized(name: str) -> bool:
    """Whether a name is like those of SVDQuant files, which come first in the list. What a file is, its tensors say."""
    return any(word in name.lower() for word in ("svdq", "nunchaku"))


def _belongs_to_folder(name: Path) -> bool:
    """Whether a file is a piece of a model in a folder of its own."""
    pieces = (*LEGACY_FILES, *NATIVE_FILES)
    return name.parent != Path() and (name.name in pieces or _SHARD.search(name.name) is not None)


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


def list_text_encoders(quantized_first: bool = True) -> list[str]:
    """Files of text_encoders, those that are called as 4-bit ones are first, or last."""
    names = folder_paths.get_filename_list("text_encoders")
    return sorted(names, key=lambda name: looks_4_bit(name) != quantized_first)


def looks_4_bit(name: str) -> bool:
    """Whether a name is like those of 4-bit text encoders: nunchaku's, and what Quantize Text Encoder writes."""
    return any(word in Path(name).name.lower() for word in ("awq-int4", "w4a16"))


def list_projections() -> list[str]:
    """Checkpoints that may hold what a text encoder needs beside it, as LTX-2's do."""
    return [name for name in folder_paths.get_filename_list("checkpoints") if "ltx" in name.lower()]


def text_encoder_path(name: str) -> str:
    """Full path of an entry of list_text_encoders, or of list_projections.

    Raises:
        SVDQuantError: there is no such file any more.
    """
    if folder_paths.get_full_path("text_encoders", name) is None and name in list_projections():
        return _path_of("checkpoints", name)
    return _path_of("text_encoders", name)


def _path_of(kind: str, name: str) -> str:
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        raise SVDQuantError(f"{name}: not found in models/{kind}. Refresh the page and choose again.")
    return path


def embedding_folders() -> list[str]:
    """Where textual inversions lie."""
    return folder_paths.get_folder_paths("embeddings")


def lora_path(name: str) -> str:
    return _path_of("loras", name)


def list_loras() -> list[str]:
    return folder_paths.get_filename_list("loras")


def output_path(name: str, overwrite: bool, kind: str = MODEL_KIND) -> Path:
    """Path of a new file below output/, in the folder of its kind; the host lists diffusion_models among its models.

    Args:
        name: file name without ending; subfolders with "/" are allowed.
        overwrite: take the name even if there is such a file; otherwise a number is put behind it, as SaveImage does.

    Raises:
        SVDQuantError: it is no name for a file, or leads out of the folder.
    """
    root = Path(folder_paths.get_output_directory()) / kind
    path = root / f"{check_name(name, str(root))}.safetensors"
    try:
        if not path.resolve().is_relative_to(root.resolve()):
            raise SVDQuantError(f"{path} is no file inside {root}. Choose another name.")
        return path if overwrite else _free_name(path)
    except (OSError, RuntimeError) as error:  # a folder that cannot be looked into, a loop of links
        raise SVDQuantError(f"{path}: cannot be written ({error}). Choose another name.") from error


def _free_name(path: Path) -> Path:
    """The path itself, or with the first number that nothing has yet: name.safetensors, name_2.safetensors, ..."""
    names = itertools.chain([path], (path.with_stem(f"{path.stem}_{number}") for number in itertools.count(2)))
    return next(name for name in names if not name.exists())


def fingerprint(path: str) -> str:
    """Changes when a file, or a file of a model in a folder, is replaced."""
    place = Path(path)
    files = [place] if place.is_file() else sorted(f for f in place.glob("*") if f.suffix in _FOLDER_ENDINGS)
    return "".join(f"{f}:{f.stat().st_mtime_ns}:{f.stat().st_size};" for f in files if f.is_file())
