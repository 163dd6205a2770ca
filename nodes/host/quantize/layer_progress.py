"""Progress of a run over layers: a bar, the layer's name and the seconds that are left, and the user's wish to stop."""

import time
from collections.abc import Mapping

import comfy.model_management
import comfy.utils
import server
from comfy_execution.utils import get_executing_context

TEXT_INTERVAL = 0.2  # seconds between two texts; each is a message to the page


class LayerProgress:
    """Args:
    sizes: layer -> how long it takes, in any unit, in the order in which they come.
    """

    def __init__(self, sizes: Mapping[str, float]):
        self._left = dict(sizes)
        self._bar = comfy.utils.ProgressBar(len(sizes))
        self._started = self._shown = time.perf_counter()
        self._done = 0.0

    @staticmethod
    def poll() -> None:
        """Raise the host's interruption if the user pressed cancel."""
        comfy.model_management.throw_exception_if_processing_interrupted()

    @staticmethod
    def show(text: str) -> None:
        """A text below the running node, until the next one."""
        _show(text)

    def step(self, count: int, total: int, name: str) -> None:
        """A layer is done.

        Args:
            count: layers that are done, those of an earlier run included. total: all of them.
        """
        self.poll()
        if self._done == 0:  # the first of this run: those before it were done by an earlier one
            for earlier in list(self._left)[: count - 1]:
                if earlier != name:
                    del self._left[earlier]
        self._done += self._left.pop(name, 0.0)
        self._bar.update_absolute(count, total)
        now = time.perf_counter()
        if now - self._shown >= TEXT_INTERVAL or count == total:
            self._shown = now
            seconds = (now - self._started) / max(self._done, 1e-9) * sum(self._left.values())
            _show(f"{name} ({count} of {total}), {_duration(seconds)} left")


class StepProgress:
    """Progress of a training over blocks whose steps take the same time each."""

    def __init__(self):
        self._bar: comfy.utils.ProgressBar | None = None
        self._started, self._shown, self._first = time.perf_counter(), 0.0, -1

    def step(self, done: int, total: int, block: str) -> None:
        """Steps that are done, those of an earlier run included, of all of them, and the block that is trained."""
        LayerProgress.poll()
        now = time.perf_counter()
        bar = self._bar = self._bar or comfy.utils.ProgressBar(total)
        if self._first < 0:
            self._started, self._first = now, done
        if now - self._shown < TEXT_INTERVAL and done < total:
            return
        self._shown = now
        bar.update_absolute(done, total)
        seconds = (now - self._started) / max(done - self._first, 1) * (total - done)
        _show(f"refining {block} ({done / total:.0%}), {_duration(seconds)} left")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _show(text: str) -> None:
    """Below the running node."""
    context = get_executing_context()
    send = getattr(server.PromptServer.instance, "send_progress_text", None)  # older hosts have none
    if context is not None and send is not None:
        send(text, context.node_id)
