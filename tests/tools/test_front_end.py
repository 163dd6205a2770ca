"""Another release of the page: a folder that holds one, or a release that pip fetches once."""

import sys
from pathlib import Path
from types import SimpleNamespace

import dev_environment
import front_end
import pytest
from front_end import front_end_folder

PYTHON = Path(sys.executable)


def make_page(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("<html>")
    return folder


@pytest.mark.parametrize("below", ["", "static", "comfyui_frontend_package/static"])
def test_a_folder_is_taken_at_any_depth(tmp_path, below):
    page = make_page(tmp_path / "page" / below)
    assert front_end_folder(PYTHON, str(tmp_path / "page")) == page.resolve()


def test_a_folder_without_a_page_is_refused(tmp_path):
    with pytest.raises(dev_environment.SetupError, match=r"no index\.html"):
        front_end_folder(PYTHON, str(tmp_path))


def test_a_release_is_fetched_once(tmp_path, monkeypatch):
    commands = []

    def fetch(*command):
        commands.append([str(part) for part in command])
        make_page(tmp_path / "9.9.9" / "comfyui_frontend_package" / "static")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(front_end, "run", fetch)
    first = front_end_folder(PYTHON, "9.9.9", tmp_path)
    assert front_end_folder(PYTHON, "9.9.9", tmp_path) == first
    assert len(commands) == 1 and commands[0][-1] == "comfyui-frontend-package==9.9.9"
    assert "--no-deps" in commands[0]


def test_an_unknown_release_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(front_end, "run", lambda *command: SimpleNamespace(returncode=1))
    with pytest.raises(dev_environment.SetupError, match=r"neither a folder nor a release"):
        front_end_folder(PYTHON, "0.0.0", tmp_path)
