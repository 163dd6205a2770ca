"""The demo from start to end: start the host, post the workflows, write pictures and report."""

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from comfyui_server import ComfyUIError, ComfyUIServer
from command_line import typed

from . import gallery, install, random_pixart, report, round_trip, sheet
from .client import Client
from .verdict import Judge

SVDQUANT_NODES = ("SVDQuantModelLoader", "SVDQuantLoraLoader", "SVDQuantQuantizeModel", "SVDQuantExportModel")


class Stages:
    """Progress lines on the terminal, and the wall time of each stage."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self.times: list[tuple[str, float]] = []

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:6.1f} s] {text}", flush=True)

    @contextmanager
    def stage(self, name: str):
        self.say(name)
        start = time.monotonic()
        yield
        self.times.append((name, time.monotonic() - start))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 when every check passed, 1 when one failed or the host did."""
    parser = argparse.ArgumentParser(prog=typed("demo/run.py"), description=__doc__)
    parser.add_argument("--host", type=Path, required=True, help="a ComfyUI folder; nothing is written there")
    parser.add_argument("--base", type=Path, required=True, help="folder for the host's models, nodes and outputs")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures and the report")
    options = parser.parse_args(arguments)
    base, output = options.base.resolve(), options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    stages = Stages()
    try:
        run = _run(options.host, base, stages)
    except (ComfyUIError, ValueError) as error:
        print(f"The demo stopped: {error}\nLog of the host: {base / 'server.log'}", file=sys.stderr)
        return 1
    run.pictures.extend(sheet.write(run, output))
    path = output / "report.md"
    path.write_text(report.markdown(run, output), encoding="utf-8")
    for check in run.checks:
        stages.say(f"{'pass' if check.passed else 'FAIL'}  {check.statement} ({check.detail})")
    stages.say(f"comparison: {run.pictures[0]}")
    stages.say(f"report:     {path}")
    return 0 if run.passed else 1


def _run(host: Path, base: Path, stages: Stages) -> report.Run:
    with stages.stage("Copy the models, make random PixArt weights"):
        install.install_models(base)
        install.install_nodes(base)
        pixart_source = random_pixart.install(base)
    server = ComfyUIServer(host, base)
    try:
        with stages.stage("Start ComfyUI"):
            server.start()
        return _draw_everything(server, base, pixart_source, stages)
    finally:
        server.stop()


def _draw_everything(server: ComfyUIServer, base: Path, pixart_source: Path, stages: Stages) -> report.Run:
    _check_nodes(server)
    client = Client(server)
    with stages.stage("Quantize FLUX in the graph, save, load, export, load"):
        files, checks = round_trip.run(client, stages.say)
    with stages.stage("Draw the captions"):
        names = {file.precision: file.path.name for file in files}
        pictures = gallery.draw(client, names, Judge(), stages.say)
    with stages.stage("PixArt-Sigma with random weights"):
        pixart_result, pixart_checks = random_pixart.run(client, pixart_source, stages.say)
    return report.Run(
        machine=_machine(server),
        source=base / "models" / install.MODEL_FOLDERS[install.FLUX] / install.FLUX,
        files=files,
        gallery=pictures,
        pixart=pixart_result,
        checks=[*checks, *pictures.checks, *pixart_checks],
        times=stages.times,
    )


def _check_nodes(server: ComfyUIServer) -> None:
    """The host only logs a pack that did not load, and goes on without it."""
    missing = sorted({*SVDQUANT_NODES, *install.NODE_IDS} - server.object_info().keys())
    if missing:
        reasons = "\n".join(server.import_failures()) or "its log names no reason"
        raise ComfyUIError(f"The host has no node {', '.join(missing)}: {reasons}")


def _machine(server: ComfyUIServer) -> str:
    system = json.loads(server.request("/system_stats"))
    device = system["devices"][0]["name"]
    return (
        f"ComfyUI {system['system']['comfyui_version']} on {device} ({platform.machine()}, {torch.get_num_threads()} "
        f"threads), torch {torch.__version__}, Python {platform.python_version()}. "
        "On a CPU the host computes the BF16 weights in 32 bits."
    )
