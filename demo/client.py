"""Posts the workflows of workflows/demo to a running ComfyUI and brings the results back, as any client would."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from safetensors.torch import load
from torch import Tensor

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows" / "demo"


class Server(Protocol):
    """What the demo asks of a running ComfyUI."""

    def prompt(self, graph: dict[str, Any]) -> dict[str, Any]: ...

    def view(self, image: dict[str, str]) -> bytes: ...


@dataclass(frozen=True)
class WorkflowOutcome:
    """What one posted workflow brought.

    Args:
        seconds: the host's own time from start to success of the prompt, loading included.
        latent: (1, C, H/8, W/8), or None when the workflow samples nothing.
        image: (H, W, 3) uint8, or None.
        texts: node name -> the text that it showed.
    """

    seconds: float
    latent: Tensor | None = None
    image: np.ndarray | None = None
    texts: dict[str, str] = field(default_factory=dict)


def read_workflow(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Read workflows/demo/<name>.json (API form) and set inputs.

    Args:
        values: "node.input" -> value; each must already be an input of the file.

    Raises:
        KeyError: the workflow has no such node or input.
    """
    graph = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    for target, value in values.items():
        node, _, key = target.partition(".")
        if key not in graph.get(node, {}).get("inputs", {}):
            raise KeyError(f"workflows/demo/{name}.json has no input {target}.")
        graph[node]["inputs"][key] = value
    return graph


class Client:
    """Runs workflows on one server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def run(self, workflow: str, values: Mapping[str, Any] | None = None) -> WorkflowOutcome:
        """Post a workflow of workflows/demo and fetch its latent, image and texts."""
        entry = self._server.prompt(read_workflow(workflow, values or {}))
        outputs = entry["outputs"]
        return WorkflowOutcome(
            seconds=_seconds(entry["status"]["messages"]),
            latent=self._latent(outputs["save_latent"]["latents"][0]) if "save_latent" in outputs else None,
            image=self._image(outputs["save_image"]["images"][0]) if "save_image" in outputs else None,
            texts={node: shown["text"][0] for node, shown in outputs.items() if "text" in shown},
        )

    def _latent(self, place: dict[str, str]) -> Tensor:
        return load(self._server.view(place))["latent_tensor"]

    def _image(self, place: dict[str, str]) -> np.ndarray:
        with Image.open(io.BytesIO(self._server.view(place))) as image:
            return np.array(image.convert("RGB"))


def _seconds(messages: list[tuple[str, dict[str, Any]]]) -> float:
    """Time between the host's own start and success messages, whose stamps are milliseconds."""
    stamps = {kind: content["timestamp"] for kind, content in messages if "timestamp" in content}
    return (stamps["execution_success"] - stamps["execution_start"]) / 1000
