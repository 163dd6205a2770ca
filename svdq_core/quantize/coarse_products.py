"""Matrix products of float32 on tensor cores (TF32: 10 bits of mantissa), where a later rounding swallows the loss.

On an H200 a product of two float32 matrices takes eight times as long without them.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

logger = logging.getLogger("svdquant")

TF32 = "high"  # as torch calls it


@contextmanager
def coarse_products(device: torch.device) -> Iterator[None]:
    """Products on this device may lose bits within; what the process had set before comes back afterwards.

    Nothing changes where the device is no GPU of NVIDIA's, and where torch refuses, as it does when others have mixed
    its older and newer settings.
    """
    before = None
    if device.type == "cuda":
        try:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision(TF32)
        except RuntimeError as error:
            logger.debug("Products stay in float32: %s", error)
            before = None
    try:
        yield
    finally:
        if before is not None:
            torch.set_float32_matmul_precision(before)
