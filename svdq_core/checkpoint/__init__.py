"""Files: opening, recognising, reading and writing SVDQuant checkpoints."""

from ..model import QuantizedModel
from .container import Checkpoint
from .nunchaku_read import plan_nunchaku
from .nunchaku_write import to_nunchaku
from .packed import is_packed, read_packed
from .save import require_space, save_tensors


def read_checkpoint(checkpoint: Checkpoint) -> QuantizedModel:
    """Read a checkpoint of any kind that this pack knows, chosen by its tensors.

    Raises:
        CheckpointError: it is of no such kind, damaged or incomplete.
    """
    return read_packed(checkpoint) if is_packed(checkpoint) else plan_nunchaku(checkpoint).read()


__all__ = ["Checkpoint", "read_checkpoint", "require_space", "save_tensors", "to_nunchaku"]
