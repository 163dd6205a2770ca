"""What the numbers in a tensor from outside may be."""

import torch
from torch import Tensor

from .errors import CheckpointError

HALF = (torch.bfloat16, torch.float16)
FLOAT = (*HALF, torch.float32)
E4M3 = (torch.float8_e4m3fn,)


def check_values(tensor: Tensor, dtypes: tuple[torch.dtype, ...], what: str) -> None:
    """Raise CheckpointError unless the tensor has one of the dtypes and only finite values.

    Args:
        what: file, layer and tensor, for the message.
    """
    if tensor.dtype not in dtypes:
        names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise CheckpointError(
            f"{what} is {str(tensor.dtype).removeprefix('torch.')}, expected {names}. The file is damaged or of "
            "another format."
        )
    if tensor.dtype.is_floating_point and not _is_finite(tensor):
        raise CheckpointError(
            f"{what} holds NaN or infinite values. The file is damaged; download or quantize it again."
        )


def _is_finite(tensor: Tensor) -> bool:
    if tensor.numel() == 0:
        return True
    if tensor.dtype == torch.float8_e4m3fn:  # has NaN only, 0x7F and 0xFF: the largest byte with a sign and without
        return int(tensor.view(torch.int8).max()) != 0x7F and int(tensor.view(torch.uint8).max()) != 0xFF
    low, high = torch.aminmax(tensor)  # NaN and infinities survive it; 38 times as fast as isfinite on bfloat16
    return bool(torch.isfinite(low) & torch.isfinite(high))
