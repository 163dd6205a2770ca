"""Files: opening, recognising, reading and writing SVDQuant checkpoints."""

from ..quantized_model import QuantizedModel
from .container import Checkpoint
from .dialects import plan_checkpoint, wanted_second_file
from .nunchaku_write import to_nunchaku
from .save import require_space, save_tensors
from .t5_read import read_text_encoder


def read_checkpoint(checkpoint: Checkpoint) -> QuantizedModel:
    """Read a checkpoint of any kind that this pack knows, chosen by its tensors.

    Raises:
        CheckpointError: it is of no such kind, damaged or incomplete.
    """
    return plan_checkpoint(checkpoint).read()


__all__ = [
    "Checkpoint",
    "plan_checkpoint",
    "read_checkpoint",
    "read_text_encoder",
    "require_space",
    "save_tensors",
    "to_nunchaku",
    "wanted_second_file",
]
