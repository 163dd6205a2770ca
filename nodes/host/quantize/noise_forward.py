"""One forward of a model on noise, in a thread of its own that waits whenever a block has run."""

import threading
import weakref
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING

import comfy.model_base
import torch
from torch import Tensor

from ....svdq_core.quantize.coarse_products import coarse_products
from ....svdq_core.quantize.statistics import named_generator
from .noise_conditions import draw_latent, make_conditions
from .watch import block_of

if TYPE_CHECKING:
    from .block_inputs import NoiseInputs

WEAKEST_TEXT = 0.1  # text encoders differ in the size of their output: texts get sizes from this to 1


class _ClosedError(Exception):
    """Nobody waits for the rest of a forward."""


class NoiseForward:
    """One run of the model, in a thread that only ever runs while somebody waits for it.

    Args:
        owner: what it belongs to. twin: the model that it runs; forwards of one owner share it.
        index, count: which of how many forwards, each with its share of the pictures.
        most_rows: of an input that are kept.
    """

    def __init__(
        self, owner: "NoiseInputs", twin: comfy.model_base.BaseModel, *, index: int, count: int, most_rows: int
    ):
        self.owner, self.twin, self.index, self.count, self.most_rows = owner, twin, index, count, most_rows
        self.inputs: dict[str, Tensor] = {}
        self._block, self._preparing = "", True
        self._seen: list[tuple[weakref.ref[Tensor], int, Tensor]] = []
        self._go: SimpleQueue[bool] = SimpleQueue()
        self._reports: SimpleQueue[str | BaseException | None] = SimpleQueue()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="svdquant noise", daemon=True)

    def begin(self) -> None:
        """Run up to the first block.

        Raises:
            Exception: whatever the model raises.
        """
        self._thread.start()
        self._resume()

    def advance(self, wanted: str) -> tuple[dict[str, Tensor], set[str]]:
        """Run until the block has run: its inputs, and all blocks that were passed; no inputs if it never runs."""
        passed = set()
        while not self._ended:
            left = self._resume()
            if left is None:
                break
            passed.add(left)
            if left == wanted:
                found, self.inputs = self.inputs, {}
                return found, passed
            self.inputs = {}
        return {}, passed | {wanted}

    def close(self) -> None:
        if self._thread.is_alive() and not self._ended:
            self._go.put(False)
            self._thread.join()
        self._ended = True

    def _resume(self) -> str | None:
        """Let the thread go on; the block that it has left, "" before the first one, None at the end."""
        self.owner.running = self
        with coarse_products(self.owner.device):  # of inputs that are noise; the thread computes only meanwhile
            self._go.put(True)
            report = self._reports.get()
        if isinstance(report, BaseException):
            self._ended = True
            self._thread.join()
            raise report
        self._ended = report is None
        return report

    def _pause(self, block: str) -> None:
        self._reports.put(block)
        if not self._go.get():
            raise _ClosedError

    def _work(self) -> None:
        try:
            if self._go.get():
                with torch.no_grad():
                    self._run()
                self._reports.put(None)
        except _ClosedError:
            pass
        except BaseException as error:  # noqa: BLE001  raised again where somebody waits
            self._reports.put(error)

    def _run(self) -> None:
        owner, twin = self.owner, self.twin
        request, pictures = owner.request, owner.request.batch
        generator = named_generator(owner.seed, "noise")
        latent, shapes = draw_latent(twin, request, generator)
        sizes = WEAKEST_TEXT ** torch.rand(pictures, generator=generator)
        progress = (
            torch.randperm(pictures, generator=generator) + torch.rand(pictures, generator=generator)
        ) / pictures
        sigmas = torch.tensor([float(twin.model_sampling.percent_to_sigma(p)) for p in progress.tolist()])
        # so large that the network sees numbers of unit size, as it does while sampling
        latent = latent / twin.model_sampling.calculate_input(sigmas, torch.ones_like(latent))
        each = pictures // self.count
        mine = slice(self.index * each, (self.index + 1) * each)
        latent, sigmas = latent[mine].to(owner.device), sigmas[mine].to(owner.device)
        conditions = make_conditions(
            twin, latent, shapes, replace(request, batch=each), generator=generator, strength=sizes[mine]
        )
        self._preparing = False
        twin.apply_model(latent, sigmas, **conditions)
        if self._block:
            self._pause(self._block)

    def take_in(self, name: str, x: Tensor) -> None:
        """A Linear is about to multiply x."""
        block = block_of(name, self.owner.blocks)
        if not block or self._preparing:
            return
        if block != self._block:
            self._pause(self._block)  # "" before the first one
            self._block, self._seen = block, []
        rows = next((rows for other, version, rows in self._seen if other() is x and version == x._version), None)
        if rows is None:
            rows = self._rows(name, x)
            self._seen.append((weakref.ref(x), x._version, rows))
        before = self.inputs.get(name)
        self.inputs[name] = rows if before is None else torch.cat((before, rows))

    def _rows(self, name: str, x: Tensor) -> Tensor:
        """A copy of rows of x, which may change afterwards; no more of them than will count."""
        rows, most = x.reshape(-1, x.shape[-1]), self.most_rows
        if len(rows) <= most:
            return rows.clone()
        chosen = torch.randperm(len(rows), generator=named_generator(self.owner.seed, f"rows of {name}"))[:most]
        return rows[chosen.to(x.device)]
