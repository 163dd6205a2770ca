"""A server that has every file that the workflows name."""

import pytest
from comfyui_server import ComfyUIServer
from comfyui_source import find_host
from furnished_base import furnish


@pytest.fixture(scope="session")
def furnished(tmp_path_factory):
    """A running server with all files in place."""
    base = tmp_path_factory.mktemp("furnished")
    furnish(base)
    with ComfyUIServer(find_host(), base, device="cpu") as server:
        assert not server.import_failures(), server.log_text()
        yield server
