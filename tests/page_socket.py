"""What ComfyUI's page hears while a prompt runs: the messages of the host's websocket, as they come."""

import asyncio
import contextlib
import io
import json
import struct
import threading
import uuid
from dataclasses import dataclass, field

import aiohttp
from PIL import Image

TEXT, PREVIEW_WITH_METADATA = 3, 4  # the host's numbers of binary messages
WAIT = 120  # seconds


@dataclass
class Heard:
    """Everything about one prompt.

    Args:
        progress: node -> (value, maximum) of each message, in order.
        previews: node -> pictures, in order.
        texts: node -> texts below it, in order.
        ended: node -> states in which it was last reported.
    """

    progress: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    previews: dict[str, list[Image.Image]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)

    def add(self, message: aiohttp.WSMessage, prompt_id: str) -> bool:
        """Take one message in; whether it says that the prompt is done."""
        if message.type == aiohttp.WSMsgType.BINARY:
            self._add_binary(message.data)
            return False
        said = json.loads(message.data)
        data = said["data"]
        if data.get("prompt_id") != prompt_id:
            return False
        if said["type"] == "progress":
            self.progress.setdefault(data["node"], []).append((data["value"], data["max"]))
        if said["type"] == "progress_state":
            self.ended |= {node: state["state"] for node, state in data["nodes"].items()}
        return said["type"] in ("execution_success", "execution_error", "execution_interrupted")

    def _add_binary(self, data: bytes) -> None:
        (kind, length), rest = struct.unpack(">II", data[:8]), data[8:]
        head, body = rest[:length], rest[length:]
        if kind == TEXT:
            self.texts.setdefault(head.decode(), []).append(body.decode())
        if kind == PREVIEW_WITH_METADATA:
            self.previews.setdefault(json.loads(head)["node_id"], []).append(Image.open(io.BytesIO(body)))


def listen(server, graph: dict, preview: str = "none") -> Heard:
    """Run a graph in API form as the page does.

    Args:
        server: a running ComfyUIServer.
        preview: the page's setting for previews, as "latent2rgb".
    """
    heard, connected, prompt, client = Heard(), threading.Event(), threading.Event(), uuid.uuid4().hex
    prompt_id: list[str] = []

    async def hear() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{server.url}/ws?clientId={client}") as socket,
        ):
            await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            while (await socket.receive_json())["type"] != "feature_flags":
                pass
            connected.set()
            waiting = []
            while True:
                message = await socket.receive()
                if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                    return
                waiting.append(message)  # what comes before the answer to the request is kept
                if prompt.is_set():
                    while waiting:
                        if heard.add(waiting.pop(0), prompt_id[0]):
                            return

    async def within_time() -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(hear(), WAIT)

    thread = threading.Thread(target=lambda: asyncio.run(within_time()), daemon=True)
    thread.start()
    assert connected.wait(WAIT), "the websocket did not answer"
    body = {"prompt": graph, "client_id": client, "extra_data": {"preview_method": preview}}
    prompt_id.append(json.loads(server.request("/prompt", json.dumps(body).encode()))["prompt_id"])
    prompt.set()
    thread.join(WAIT)
    return heard
