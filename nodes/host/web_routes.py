"""Serving the pack's help pages, scripts and templates when its folder has a name that must be quoted in an address.

The host's static routes answer 404 under such a name (seen with aiohttp 3.14): `ComfyUI-SVDQuant (1)` would have no
help and no templates. Plain names are left to the host.
"""

import re
from pathlib import Path
from urllib.parse import quote

from server import PromptServer, web  # aiohttp's, as the host itself uses it

PLACES = {"/extensions/{folder}/{{file:.+}}": "web", "/workflow_templates/{folder}/{{file:.+}}": "workflows"}


def serve_odd_name(pack: Path) -> bool:
    """Add the routes, if the name of the pack's folder needs them; whether it did.

    Args:
        pack: the folder with the pack's __init__.py.
    """
    name, server = pack.name, getattr(PromptServer, "instance", None)
    if server is None or quote(name) == name or set(name) & set("{}"):
        return False
    spelled = "|".join(re.escape(text) for text in {name, quote(name), quote(name, safe="()!*'")})
    for address, folder in PLACES.items():
        server.routes.get(address.format(folder=f"{{folder:{spelled}}}"))(_sender(pack / folder))
    return True


def _sender(folder: Path):
    root = folder.resolve()

    async def send(request: web.Request) -> web.StreamResponse:
        path = (root / request.match_info["file"]).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            raise web.HTTPNotFound
        return web.FileResponse(path)

    return send
