"""Finding a Chromium: the one that is named and no other, then those of the search path, then installers' places."""

import chromium
import pytest
from chromium import find_chromium


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A search path of one folder; call it to put an executable there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr(chromium, "OTHER_PLACES", (str(tmp_path / "elsewhere"),))

    def put(name):
        path = tmp_path / name
        path.write_text("")
        path.chmod(0o755)
        return str(path)

    return put


def test_none_is_none(system):
    assert find_chromium() is None


def test_the_search_path_comes_before_other_places(system):
    elsewhere = system("elsewhere")
    assert find_chromium() == elsewhere
    usual = system("google-chrome")
    assert find_chromium() == usual


def test_the_named_one_is_taken_or_none(system, monkeypatch):
    system("chromium")
    mine = system("mine")
    monkeypatch.setenv("CHROMIUM", mine)
    assert find_chromium() == mine
    monkeypatch.setenv("CHROMIUM", mine + "-gone")
    assert find_chromium() is None, "a wrong name is not made good by another browser"
