"""One forward of a model, in a thread of its own that waits before every block."""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import torch


class _AbandonedError(Exception):
    """Nobody waits for the rest of a forward."""


class WaitingForward:
    """A forward that only ever runs while somebody waits for it.

    Args:
        forward: runs it; called in the thread.
    """

    def __init__(self, forward: Callable[[], None]):
        self.block: str | None = ""
        self.inputs: tuple[tuple, dict[str, Any]] = (), {}
        self._forward = forward
        self._go: SimpleQueue[bool] = SimpleQueue()
        self._reports: SimpleQueue[str | BaseException | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="svdquant refine", daemon=True)

    def resume(self) -> str | None:
        """Run on to the next block; its name, None at the end.

        Raises:
            Exception: whatever the model raises.
        """
        if not self._thread.is_alive():
            if self.block is None:
                return None
            self._thread.start()
        self._go.put(True)
        report = self._reports.get()
        self.block = None if isinstance(report, BaseException) else report
        if isinstance(report, BaseException):
            raise report
        return report

    def wait_before(self, block: str, inputs: tuple[tuple, dict[str, Any]]) -> None:
        """Called by the thread."""
        self.inputs = inputs
        self._reports.put(block)
        if not self._go.get():
            raise _AbandonedError

    def close(self) -> None:
        if self._thread.is_alive():
            self._go.put(False)
            self._thread.join()
        self.block, self.inputs = None, ((), {})

    def _work(self) -> None:
        try:
            if self._go.get():
                with torch.no_grad():
                    self._forward()
                self._reports.put(None)
        except _AbandonedError:
            pass
        except BaseException as error:  # noqa: BLE001  raised again where somebody waits
            self._reports.put(error)
