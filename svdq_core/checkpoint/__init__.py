"""Files: opening, recognising, reading and writing SVDQuant checkpoints."""

from .container import Checkpoint
from .nunchaku_read import read_nunchaku
from .nunchaku_write import to_nunchaku
from .save import require_space, save_tensors

__all__ = ["Checkpoint", "read_nunchaku", "require_space", "save_tensors", "to_nunchaku"]
