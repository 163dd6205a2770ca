"""Two 4-bit codes a byte, and back. Exact inverses of each other."""

import torch
from torch import Tensor


def pack_nibbles(codes: Tensor) -> Tensor:
    """Pack 4-bit codes, the even column into the low nibble.

    Args:
        codes: (..., K) any integer dtype, -8...7 or 0...15; only the low four bits count.

    Returns:
        (..., K//2) int8.
    """
    nibbles = codes.to(torch.uint8) & 15 if codes.dtype == torch.uint8 else (codes.to(torch.int16) & 15).to(torch.uint8)
    return (nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)).view(torch.int8)


def unpack_uint4(packed: Tensor) -> Tensor:
    """Unpack to codes 0...15: (..., K//2) int8 -> (..., K) uint8."""
    packed = packed.view(torch.uint8)
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def unpack_int4(packed: Tensor) -> Tensor:
    """Unpack to two's-complement codes -8...7: (..., K//2) int8 -> (..., K) int8."""
    # Shifting the low nibble up and arithmetically down again extends its sign.
    return torch.stack(((packed << 4) >> 4, packed >> 4), dim=-1).flatten(-2)
