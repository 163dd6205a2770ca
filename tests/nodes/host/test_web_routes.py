"""The routes of a pack in a folder with an odd name: files of its own, under every spelling, and nothing else."""

import asyncio
import re
from urllib.parse import quote

import pytest

NAMES = ["ComfyUI-SVDQuant (1)", "a{b}c", "{}", "}{", "50%25", "100%", "ü 日本", "a+b&c", "a'b!*", "x;y,z=#?"]


@pytest.fixture
def routes(host):
    from svdquant_pack.nodes.host import web_routes

    return web_routes


def pack(tmp_path, name):
    folder = tmp_path / name
    (folder / "web").mkdir(parents=True)
    (folder / "web" / "help me.md").write_text("helped")
    (folder / "workflows").mkdir()
    (folder / "secret.txt").write_text("secret")
    return folder


def ask(folder, routes, addresses):
    """(status, text) of each address, which goes out as it is."""
    from aiohttp import ClientSession, web
    from yarl import URL

    async def core(request):
        return web.Response(text="core")

    async def run():
        app = web.Application()
        app.add_routes(routes.odd_routes(folder))
        app.router.add_get("/extensions/core/x.js", core)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        found = []
        async with ClientSession() as session:
            for address in addresses:
                async with session.get(URL(f"http://127.0.0.1:{port}{address}", encoded=True)) as response:
                    found.append((response.status, await response.text() if response.status == 200 else ""))
        await runner.cleanup()
        return found

    return asyncio.run(run())


@pytest.mark.parametrize("name", NAMES)
def test_files_are_found_under_every_spelling(name, routes, tmp_path):
    folder = pack(tmp_path, name)
    spelled = {
        quote(name),
        quote(name, safe=""),
        quote(name, safe="()!*'"),
        re.sub("%..", lambda code: code[0].lower(), quote(name)),
    }
    browser = quote(name, safe="%()!*'+&;,=")  # what a page does to a name that nobody quoted: a % stays
    spelled |= {browser} if "%" not in name or name == "50%25" else set()
    addresses = [f"/extensions/{text}/help%20me.md" for text in sorted(spelled)]
    assert ask(folder, routes, addresses) == [(200, "helped")] * len(addresses)


def test_nothing_else_is_given_away(routes, tmp_path):
    folder = pack(tmp_path, "a{b}c")
    there = "/extensions/a%7Bb%7Dc"
    bad = [f"{there}/x%00y", f"{there}/%00", f"{there}/..%2Fsecret.txt", f"{there}/%2e%2e/secret.txt"]
    bad += [f"{there}/{'x' * 3000}", f"{there}/", f"{there}/%ff", "/extensions/other/help%20me.md"]
    assert [status for status, _ in ask(folder, routes, bad)] == [404] * len(bad)
    assert ask(folder, routes, ["/extensions/core/x.js"]) == [(200, "core")]
