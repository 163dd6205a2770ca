"""Many pictures on one sheet."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

_COLUMNS, _GAP = 8, 4


def write_sheet(path: Path, pictures: Tensor) -> None:
    """Write pictures (B, 3, H, W) in [0, 1] as a PNG, eight in a row."""
    count, _, height, width = pictures.shape
    rows = -(-count // _COLUMNS)
    sheet = torch.ones(3, rows * (height + _GAP) - _GAP, _COLUMNS * (width + _GAP) - _GAP)
    for index, picture in enumerate(pictures.float().cpu()):
        top, left = (index // _COLUMNS) * (height + _GAP), (index % _COLUMNS) * (width + _GAP)
        sheet[:, top : top + height, left : left + width] = picture
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((sheet.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()).save(path)
