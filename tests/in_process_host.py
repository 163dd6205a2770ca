"""ComfyUI inside the test process: its own classes, its executor, this pack's nodes; no server, no second process."""

import asyncio
import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from comfyui_server import BASE_FOLDERS, ComfyUIError, failure_text, node_error_lines
from comfyui_source import DEV_FOLDER, write_stubs


def make_importable(host: Path, base: Path, device: str, more: str = "") -> None:
    """Make `import comfy`, `import nodes` and `import folder_paths` mean this host, with all its folders under `base`.

    The host reads its command line when comfy.cli_args is first imported; that happens here, so that test modules
    may import comfy, and svdquant_pack.nodes, at their top.
    """
    for name in BASE_FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(host))  # before everything: the pack has a folder called nodes as well
    sys.path.append(str(write_stubs(base / "stubs")))
    if not host.is_relative_to(DEV_FOLDER):
        sys.pycache_prefix = str(DEV_FOLDER / "bytecode")  # a user's own ComfyUI stays as it is
    arguments = ["main.py", "--base-directory", str(base), "--database-url", "sqlite:///:memory:"]
    arguments += {"cpu": ["--cpu"], "gpu": ["--disable-dynamic-vram"], "dynamic": []}[device]
    arguments += more.split()
    saved, sys.argv = sys.argv, arguments
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
    finally:
        sys.argv = saved
    if Path(comfy.cli_args.__file__).resolve().parents[1] != host.resolve():
        raise RuntimeError(f"comfy was imported from {comfy.cli_args.__file__}, not from {host}")
    if device == "dynamic":
        import dynamic_vram

        dynamic_vram.after_torch()


class _ServerObject:
    """What executor and node files touch of the host's server object; keeps the messages that a client would get."""

    client_id = last_node_id = last_prompt_id = None

    def __init__(self, server):
        self.routes = server.web.RouteTableDef()
        self.node_replace_manager = server.NodeReplaceManager()
        self.sockets_metadata: dict = {}
        self.messages: list[tuple[str, dict]] = []

    def send_sync(self, event, data, sid=None):
        self.messages.append((event, data))


class InProcessHost:
    """The host of this process. Make one, after make_importable."""

    def __init__(self, base: Path):
        import folder_paths
        import nodes
        import server

        self.base = base
        self.models = base / "models"
        self.output = base / "output"
        self.nodes = nodes
        self.sink = _ServerObject(server)
        server.PromptServer.instance = self.sink
        self._loop = asyncio.new_event_loop()
        self._has_extras = False
        for kind in ("diffusion_models", "loras"):  # as main.py does: what a node saves can be loaded again
            folder_paths.add_model_folder_path(kind, str(self.output / kind))
        self._register_pack()

    def _register_pack(self) -> None:
        # what the host's load_custom_node does, but under the one name that the tests import the pack by: loaded twice,
        # each torch operator would be registered twice
        from svdquant_pack.nodes import comfy_entrypoint

        extension = self._loop.run_until_complete(comfy_entrypoint())
        for node in self._loop.run_until_complete(extension.get_node_list()):
            self.nodes.NODE_CLASS_MAPPINGS[node.GET_SCHEMA().node_id] = node

    def model_folder(self, kind: str) -> Path:
        """Folder of the models of that kind ("diffusion_models", "loras", ...), made if missing."""
        folder = self.models / kind
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def call(self, node_id: str, **inputs: Any) -> tuple:
        """Execute one node of the host or of the pack, V1 or V3, as the host does; return the tuple of its outputs."""
        node = self.nodes.NODE_CLASS_MAPPINGS[node_id]
        with torch.inference_mode():
            if hasattr(node, "PREPARE_CLASS_CLONE"):
                clone = node.PREPARE_CLASS_CLONE(None)
                if inspect.iscoroutinefunction(node.execute):
                    return self._loop.run_until_complete(clone.EXECUTE_NORMALIZED_ASYNC(**inputs)).args
                return clone.EXECUTE_NORMALIZED(**inputs).args
            return getattr(node(), node.FUNCTION)(**inputs)

    def executor(self):
        """A new executor of the host: it remembers results between the graphs that it runs."""
        import execution

        sizes = {"lru": 0, "ram": 0, "ram_inactive": 0}
        return execution.PromptExecutor(self.sink, cache_type=execution.CacheType.CLASSIC, cache_args=sizes)

    def run(self, graph: dict, executor=None) -> dict:
        """Validate and run a graph in API form; return {node id: what it shows}.

        Args:
            executor: from executor(); None forgets all results afterwards.

        Raises:
            ComfyUIError: refused or failed; the text is what a user would read.
        """
        import execution

        if not self._has_extras:
            self._loop.run_until_complete(self.nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
            self._has_extras = True
        valid, error, outputs, node_errors = self._loop.run_until_complete(
            execution.validate_prompt("test", graph, None)
        )
        if not valid or node_errors:
            lines = [error["message"]] if error else []
            raise ComfyUIError("\n".join(lines + node_error_lines(node_errors)))
        executor = executor or self.executor()
        executor.execute(graph, "test", {}, outputs)
        if not executor.success:
            raise ComfyUIError(failure_text(executor.status_messages))
        return executor.history_result["outputs"]

    def unload(self) -> None:
        """Free the models that the host keeps loaded."""
        import comfy.model_management

        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()
