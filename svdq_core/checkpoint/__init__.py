"""Files: opening, recognising, reading and writing SVDQuant checkpoints."""

from ..model import QuantizedModel
from .container import Checkpoint
from .nunchaku_read import read_nunchaku
from .nunchaku_write import to_nunchaku
from .packed import is_packed, read_packed
from .save import require_space, save_tensors


def read_checkpoint(checkpoint: Checkpoint) -> QuantizedModel:
    """Read a checkpoint of any kind that this pack knows, chosen by its tensors.

    Raises:
        CheckpointError: it is of no such kind, damaged or incomplete.
    """
    return read_packed(checkpoint) if is_packed(checkpoint) else read_nunchaku(checkpoint)


__all__ = ["Checkpoint", "read_checkpoint", "read_nunchaku", "require_space", "save_tensors", "to_nunchaku"]
