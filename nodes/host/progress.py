"""Progress shown on the node, and the user's wish to stop."""

import comfy.model_management
import comfy.utils


class Progress:
    """A progress bar on the running node; each step also lets the host interrupt the run."""

    def __init__(self, total: int):
        self._bar = comfy.utils.ProgressBar(total)

    def step(self, name: str = "") -> None:
        """One unit done, here the layer `name`. Raises the host's interruption if the user pressed cancel."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._bar.update(1)
