"""What users install: small, complete, free of what only developers need, and at home in a folder of any name."""

import io
import subprocess
import sys
import tarfile
from urllib.parse import quote

import comfyui_server
import pytest
from comfyui_server import ComfyUIError, ComfyUIServer
from comfyui_source import find_host

from svdquant_pack import ROOT

ANY_NAMES = ("svdq_pack.v1-main", "ComfyUI-SVDQuant (1) é")
NEEDED = (
    "__init__.py",
    "pyproject.toml",
    "LICENSE",
    "README.md",
    "dev.py",
    "nodes/__init__.py",
    "nodes/host/model/build.py",
    "svdq_core/__init__.py",
    "kernels/__init__.py",
    "tools/check_environment.py",
    "tools/migrate_workflow.py",
    "web/docs/SVDQuantModelLoader.md",
    "web/refresh_models.js",
    "web/lora_rows.js",
    "web/node_results.js",
    "web/opening_view.js",
    "web/template_order.js",
    "locales/zh/nodeDefs.json",
    "workflows/flux.1-dev.json",
    "workflows/flux.1-dev.jpg",
    "workflows/api/flux.1-dev.json",
)
UNWANTED = ("tests/", "demo/", "benchmarks/", ".ci/", "workflows/demo/", "tools/workflow_files/")
MOST_BYTES = 3_400_000


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def archive():
    """The files that `git archive` gives, which is what a download from the repository's page holds."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    return tarfile.open(fileobj=io.BytesIO(git("archive", "--format=tar", "HEAD")))


def test_it_holds_what_users_need_and_nothing_else(archive):
    members = [member for member in archive.getmembers() if member.isfile()]
    names = {member.name for member in members}
    assert not [name for name in NEEDED if name not in names]
    assert not [name for name in names if name.startswith(UNWANTED)]
    assert not [name for name in names if name.endswith((".safetensors", ".pt", ".ckpt", ".pyc"))]
    assert sum(member.size for member in members) < MOST_BYTES


def test_it_unpacks_on_windows(archive):
    for member in archive.getmembers():
        assert not member.issym() and not member.islnk(), f"{member.name} is a link"
        assert not set(member.name) & set('<>:"|?*\\'), member.name
        assert len(member.name) < 120, f"{member.name}: long paths are trouble on Windows"
        stem = member.name.rpartition("/")[2].partition(".")[0].upper()
        assert stem not in ("CON", "PRN", "AUX", "NUL"), member.name
    names = [member.name.lower() for member in archive.getmembers()]
    assert len(names) == len(set(names)), "two names differ in case only"


def test_the_registry_leaves_out_the_same():
    ignored = {line.strip("/") for line in (ROOT / ".comfyignore").read_text(encoding="utf-8").split()}
    exported = {
        line.split()[0]
        for line in (ROOT / ".gitattributes").read_text(encoding="utf-8").splitlines()
        if line.endswith("export-ignore")
    }
    assert ignored == exported


def test_its_commands_need_no_set_up(archive, tmp_path):
    archive.extractall(tmp_path, filter="data")

    def run(*arguments):
        command = [sys.executable, tmp_path / "dev.py", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert "needs a git clone" in run("demo").stdout and "needs a git clone" in run("compile").stdout
    assert run("convert", "--help").returncode == 0
    assert "nothing was replaced" in run("migrate-workflow", tmp_path / "workflows/flux.1-dev.json", "out").stdout
    assert not (tmp_path / ".dev").exists()


@pytest.mark.skipif(find_host() is None, reason="needs ComfyUI")
@pytest.mark.parametrize("name", ANY_NAMES)
def test_it_works_in_a_folder_of_any_name(name, archive, tmp_path, monkeypatch):
    def unpack(base):
        archive.extractall(base / "custom_nodes" / name, filter="data")

    monkeypatch.setattr(comfyui_server, "install_pack", unpack)
    with ComfyUIServer(find_host(), tmp_path, device="cpu") as server:
        ours = {k: v for k, v in server.object_info().items() if v["python_module"] == f"custom_nodes.{name}"}
        assert {"SVDQuantModelLoader", "SVDQuantEnvironmentCheck"} <= set(ours), server.log_tail()
        for quoted in (quote(name), quote(name, safe="()")):  # as the host lists scripts, and as a browser asks
            help_page = server.request(f"/extensions/{quoted}/docs/SVDQuantModelLoader.md")
            assert help_page.startswith(b"# Load Model (SVDQuant)")
            assert b"registerExtension" in server.request(f"/extensions/{quoted}/refresh_models.js")
            assert server.request(f"/api/workflow_templates/{quoted}/flux.1-dev.jpg").startswith(b"\xff\xd8")
            for outside in ("pyproject.toml", "%2e%2e/pyproject.toml", "..%2fpyproject.toml", "docs"):
                with pytest.raises(ComfyUIError, match=r"HTTP 40[34]"):
                    server.request(f"/extensions/{quoted}/{outside}")
        entry = server.prompt({"1": {"class_type": "SVDQuantEnvironmentCheck", "inputs": {}}})
        assert entry["outputs"]["1"]["text"][0].startswith("SVDQuant environment check")
