"""The host's real page in a real browser; skipped, with the reason, where one of the two cannot be had.

What it takes: a Chromium of the system (tools/chromium.py); `python dev.py test` installs the rest where it finds one.
Screenshots of a run lie in output/browser/. Another page than the pinned one:
python dev.py test --front-end 1.58.1 tests/browser (it sets COMFYUI_FRONT_END).
"""

import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest
from chromium import HINT, find_chromium
from comfyui_page import ComfyUIPage
from comfyui_server import ComfyUIServer
from comfyui_source import find_host
from dev_environment import FRONT_END
from furnished_base import furnish

from svdquant_pack import ROOT

HERE = Path(__file__).parent


def why_not() -> str:
    """What is missing for these tests, or ""."""
    missing = [] if find_chromium() else [HINT]
    missing += [] if find_host() else ["ComfyUI (COMFYUI_PATH)"]
    missing += [] if find_spec("playwright") else ["playwright (pip)"]
    missing += [] if _has_front_end() else [f"{FRONT_END} (pip)"]
    return f"browser tests need {', '.join(missing)}" if missing else ""


def front_end() -> Path:
    """The folder of the page to test."""
    named = os.environ.get("COMFYUI_FRONT_END")
    return Path(named) if named else Path(find_spec("comfyui_frontend_package").origin).parent / "static"


def _has_front_end() -> bool:
    if "COMFYUI_FRONT_END" in os.environ:
        return True
    name, _, pin = FRONT_END.partition("==")
    try:
        return version(name) == pin
    except PackageNotFoundError:
        return False


def pytest_collection_modifyitems(items):
    reason = why_not()
    for item in items:
        if reason and HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="package")
def browser_host(tmp_path_factory):
    """A server with the real page, all files in place, and the demo's model in 4 bits."""
    base = tmp_path_factory.mktemp("browser")
    furnish(base)
    with ComfyUIServer(find_host(), base, device="cpu", front_end=front_end()) as server:
        assert not server.import_failures(), server.log_text()
        yield server


@pytest.fixture(scope="package")
def page(browser_host):
    """One page, kept open for this folder: while Playwright runs, no other event loop can, and the host in this
    process has one. Nothing may go wrong in it, and nothing may be asked of another machine."""
    from playwright.sync_api import sync_playwright

    pictures = ROOT / "output" / "browser"
    pictures.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        opened = ComfyUIPage(playwright, find_chromium(), browser_host, pictures)
        try:
            opened.load()
            yield opened
        finally:
            opened.close()


@pytest.fixture(scope="package", params=["canvas", "elements"])
def renderer(request):
    """Both ways in which the page can draw nodes. For the whole folder: all tests of one way come together."""
    return request.param


@pytest.fixture
def drawn(page, renderer):
    """The page in one of them."""
    page.show(**({"Comfy.VueNodes.Enabled": True} if renderer == "elements" else {}))
    return page
