"""Runs a real ComfyUI server in a subprocess and talks to it as a client does. Standard library only.

with ComfyUIServer(host=find_host(), base=folder) as server:
    entry = server.prompt(graph)
    png = server.view(entry["outputs"]["9"]["images"][0])
"""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

from comfyui_pack import PACK_NAME, install_pack
from comfyui_source import DEV_FOLDER, write_stubs

LAUNCHER = Path(__file__).with_name("comfyui_launch.py")
BASE_FOLDERS = ("custom_nodes", "models", "input", "output", "user", "temp")
LOG_MARKS = (
    "Cannot import",
    "IMPORT FAILED",
    "Error while calling comfy_entrypoint",
    "did not return a",
    "is not callable",
    "due to the lack of NODE_CLASS_MAPPINGS",
    "Failed to execute startup-script",
)

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy must not see loopback traffic


class ComfyUIError(RuntimeError):
    """The host did not start, refused a prompt, or a node failed; the text is what a user would read."""


def torch_sees_gpu(python: str = sys.executable) -> bool:
    """Whether torch in that Python can use a GPU of the kind that ComfyUI calls cuda (NVIDIA, AMD)."""
    code = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 1)"
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


def free_port() -> int:
    """A loopback port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def host_environment(host: Path, stubs: Path) -> dict[str, str]:
    """Environment for a host process: stubs importable, UTF-8, no bytecode written into a user's own ComfyUI."""
    environment = dict(os.environ, PYTHONUTF8="1", PYTHONUNBUFFERED="1")
    paths = [str(write_stubs(stubs)), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    if not host.is_relative_to(DEV_FOLDER):
        environment["PYTHONPYCACHEPREFIX"] = str(DEV_FOLDER / "bytecode")
    return environment


class ComfyUIServer:
    """A ComfyUI process on a free loopback port, with all its folders under `base` and this pack installed.

    Args:
        host: the ComfyUI folder (holds main.py); nothing is written there.
        base: folder for models, input, output and custom_nodes; made if missing.
        device: "cpu", "gpu", or "auto" (gpu when torch sees one).
        front_end: folder with an index.html; None serves an empty page.
        extra_args: further arguments for main.py.
        start_timeout: seconds until the server must answer.
    """

    def __init__(
        self,
        host: Path,
        base: Path,
        device: str = "auto",
        *,
        front_end: Path | None = None,
        extra_args: tuple[str, ...] = (),
        start_timeout: float = 300,
    ):
        self.host, self.base = Path(host).resolve(), Path(base).resolve()
        self.device, self.front_end, self.extra_args = device, front_end, tuple(extra_args)
        self.start_timeout = start_timeout
        self.log = self.base / "server.log"
        self.port: int | None = None
        self._process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        """Address of the running server."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    # ------------------------------------------------------------------------------------------------ process

    def _command(self) -> list[str]:
        front_end = self.front_end
        if front_end is None:
            front_end = self.base / "front_end"
            front_end.mkdir(exist_ok=True)
            (front_end / "index.html").write_text("<!doctype html><title>ComfyUI</title>", encoding="utf-8")
        command = [sys.executable, str(LAUNCHER), str(self.host / "main.py")]
        command += ["--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--base-directory", str(self.base), "--front-end-root", str(front_end)]
        command += ["--disable-api-nodes", "--database-url", "sqlite:///:memory:", "--disable-auto-launch"]
        # a user's extra_model_paths.yaml may name folders with other packs: leave those alone
        packs = sorted(path.name for path in (self.base / "custom_nodes").iterdir())
        command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", *packs]
        if self.device == "cpu" or (self.device == "auto" and not torch_sees_gpu()):
            command.append("--cpu")
        return command + list(self.extra_args)

    def start(self) -> None:
        """Start the process and wait until it answers.

        Raises:
            ComfyUIError: it ended, or did not answer in time; the end of its log is in the text.
        """
        for name in BASE_FOLDERS:
            (self.base / name).mkdir(parents=True, exist_ok=True)
        install_pack(self.base)
        self.port = free_port()
        environment = host_environment(self.host, self.base / "stubs")
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.base,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            self._check_alive()
            with contextlib.suppress(OSError, http.client.HTTPException):
                _opener.open(self.url + "/system_stats", timeout=5).close()
                return
            time.sleep(0.2)
        raise ComfyUIError(f"ComfyUI did not answer within {self.start_timeout:.0f} s.\n{self.log_tail()}")

    def _check_alive(self) -> None:
        if self._process is None or self._process.poll() is not None:
            code = "not started" if self._process is None else f"exit code {self._process.returncode}"
            raise ComfyUIError(f"The ComfyUI process is gone ({code}). End of {self.log}:\n{self.log_tail()}")

    def stop(self) -> None:
        """End the process; safe to call twice."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        self._process = None

    # --------------------------------------------------------------------------------------------------- log

    def log_text(self) -> str:
        """Everything the process has written so far, without colours."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return re.sub(r"\x1b\[[0-9;]*m", "", text)

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the log."""
        return "\n".join(self.log_text().splitlines()[-lines:])

    def import_failures(self) -> list[str]:
        """Log lines that say that this pack did not load; the host's exit code does not tell."""
        lines = self.log_text().splitlines()
        return [line for line in lines if PACK_NAME in line and any(mark in line for mark in LOG_MARKS)]

    # ------------------------------------------------------------------------------------------------ client

    def request(self, path: str, data: bytes | None = None, content_type: str = "application/json") -> bytes:
        """GET, or POST if there is data; return the body.

        Raises:
            ComfyUIError: the server answered with an error, or is gone.
        """
        self._check_alive()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": content_type} if data else {})
        try:
            with _opener.open(request, timeout=120) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise ComfyUIError(_refusal(error.code, path, error.read())) from error
        except OSError:
            self._check_alive()
            raise

    def object_info(self, node_id: str | None = None) -> dict:
        """What the host says about all nodes, or about one."""
        return json.loads(self.request("/object_info" + (f"/{node_id}" if node_id else "")))

    def submit(self, graph: dict) -> str:
        """Queue a graph in API form; return its prompt id. Raises ComfyUIError when the host refuses it."""
        answer = json.loads(self.request("/prompt", json.dumps({"prompt": graph}).encode()))
        if answer.get("node_errors"):  # the host would run the rest of such a graph and call that a success
            raise ComfyUIError("\n".join(node_error_lines(answer["node_errors"])))
        return answer["prompt_id"]

    def prompt(self, graph: dict, timeout: float = 600) -> dict:
        """Run a graph in API form and return its history entry.

        Raises:
            ComfyUIError: refused, failed in a node (text: node, message), interrupted, or not done in time.
        """
        prompt_id = self.submit(graph)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            entry = json.loads(self.request(f"/history/{prompt_id}")).get(prompt_id)
            if entry and entry["status"]["status_str"] == "success":
                return entry
            if entry and entry["status"]["status_str"] == "error":
                raise ComfyUIError(failure_text(entry["status"]["messages"]))
            time.sleep(0.05)
        raise ComfyUIError(f"The prompt was not done within {timeout:.0f} s.\n{self.log_tail()}")

    def view(self, image: dict) -> bytes:
        """The bytes of a file as an output names it: {"filename", "subfolder", "type"}."""
        return self.request("/view?" + urllib.parse.urlencode(image))

    def upload(self, name: str, data: bytes) -> str:
        """Put a file into the host's input folder; return the name under which nodes find it."""
        boundary = uuid.uuid4().hex
        body = b"".join(
            [
                f"--{boundary}\r\n".encode(),
                f'Content-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode(),
                data,
                f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue'.encode(),
                f"\r\n--{boundary}--\r\n".encode(),
            ]
        )
        return json.loads(self.request("/upload/image", body, f"multipart/form-data; boundary={boundary}"))["name"]

    def interrupt(self) -> None:
        """Stop the prompt that runs now."""
        self.request("/interrupt", b"{}")


def _refusal(code: int, path: str, body: bytes) -> str:
    try:
        answer = json.loads(body)
        lines = [f"{answer['error']['message']} {answer['error'].get('details', '')}".strip()]
        return "\n".join(lines + node_error_lines(answer.get("node_errors") or {}))
    except (ValueError, KeyError, TypeError):
        return f"HTTP {code} from {path}: {body.decode(errors='replace')[:500]}"


def node_error_lines(errors: dict) -> list[str]:
    """One line for each input that the host refused; `errors` is its `node_errors`."""
    return [
        f"node {node_id} ({node['class_type']}): {error['message']}: {error['details']}"
        for node_id, node in errors.items()
        for error in node["errors"]
    ]


def failure_text(messages: list) -> str:
    """What a user reads when a prompt failed; `messages` are the status messages of its history entry."""
    for kind, message in messages:
        if kind == "execution_error":
            where = f"node {message['node_id']} ({message['node_type']})"
            return f"{where}: {message['exception_type']}: {message['exception_message'].strip()}"
        if kind == "execution_interrupted":
            return f"interrupted at node {message['node_id']} ({message['node_type']})"
    return f"the prompt failed: {messages}"
