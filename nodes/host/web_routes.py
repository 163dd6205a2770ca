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
    server = getattr(PromptServer, "instance", None)
    if server is None or quote(pack.name) == pack.name:
        return False
    for route in odd_routes(pack):
        server.routes.get(route.path)(route.handler)
    return True


def odd_routes(pack: Path) -> list[web.RouteDef]:
    """What answers for a pack, however a browser spells its folder's name."""
    folder = f"{{folder:{spellings(pack.name)}}}"
    return [web.get(address.format(folder=folder), _sender(pack / place)) for address, place in PLACES.items()]


def spellings(name: str) -> str:
    """A regular expression, without braces, for a name in an address: each letter as it is, or quoted."""
    letters = []
    for letter in name:
        plain = re.escape(letter).replace("{", "x7b").replace("}", "x7d")  # a backslash stands before them already
        quoted = re.escape(quote(letter, safe="", errors="surrogateescape"))
        if quoted == plain:
            quoted = "".join(f"%{byte:02X}" for byte in letter.encode())
        letters.append(f"(?:{plain}|(?i:{quoted}))")
    return "".join(letters)


def _sender(folder: Path):
    root = folder.resolve()

    async def send(request: web.Request) -> web.StreamResponse:
        try:
            path = (root / request.match_info["file"]).resolve()
            found = path.is_relative_to(root) and path.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # no name of a file: %00, one too long, a loop of links
            raise web.HTTPNotFound from error
        if not found:
            raise web.HTTPNotFound
        return web.FileResponse(path)

    return send
