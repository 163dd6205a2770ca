"""Going on when a device has no memory left: free some, then use the CPU, then say so."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from ..errors import SVDQuantError

logger = logging.getLogger("svdquant")

Result = TypeVar("Result")


def attempt(
    action: Callable[[torch.device], Result],
    device: torch.device,
    make_room: Callable[[], None],
    what: str,
    anywhere: bool = True,
) -> Result:
    """The result of an action on a device; on another try after make_room(); on the CPU.

    What the CPU computes may differ in the last bits from what the device would have.

    Args:
        action: leaves nothing behind when it fails.
        what: it works on, for messages.
        anywhere: it can run on the CPU as well.

    Raises:
        SVDQuantError: there is not enough memory anywhere.
    """
    for number in (1, 2):
        try:
            return action(device)
        except torch.OutOfMemoryError:
            pass  # outside of this block, so that what the failed action held is free
        if number == 1:
            logger.warning("%s: %s has not enough memory; making room and trying again", what, device)
            make_room()
    if anywhere and device.type != "cpu":
        logger.warning("%s: still not enough memory on %s; this one is done on the CPU, slowly", what, device)
        try:
            return action(torch.device("cpu"))
        except torch.OutOfMemoryError:
            pass
    raise SVDQuantError(
        f"{what}: {device} has not enough memory. Close what else uses it, or choose method fast; finished layers are "
        "kept, and the same run goes on from them."
    )
