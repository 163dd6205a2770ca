"""What the numbers in a tensor from outside may be."""

import torch
from torch import Tensor

from .errors import CheckpointError

HALF = (torch.bfloat16, torch.float16)
FLOAT = (*HALF, torch.float32)
E4M3 = (torch.float8_e4m3fn,)
# bits of infinity, of e4m3fn of NaN, which is all that it has
_NOT_FINITE = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00, torch.float32: 0x7F800000, torch.float8_e4m3fn: 0x7F}


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
    """By the bits: of each sign, what is not finite comes behind all numbers.

    By numpy, in the thread that asks: several read a file at a time, and torch would start all cores for each.
    """
    if tensor.numel() == 0:
        return True
    if tensor.device.type != "cpu" or tensor.dtype not in _NOT_FINITE:
        low, high = torch.aminmax(tensor.float() if tensor.dtype in E4M3 else tensor)
        return bool(torch.isfinite(low) & torch.isfinite(high))
    infinity, bits = _NOT_FINITE[tensor.dtype], tensor.contiguous().view(-1).view(torch.uint8).numpy()
    size = tensor.dtype.itemsize
    positive, all_bits = bits.view(f"i{size}").max(), bits.view(f"u{size}").max()
    return int(positive) < infinity and int(all_bits) < infinity + (1 << (8 * size - 1))
