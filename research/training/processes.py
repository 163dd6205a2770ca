"""One process for each GPU: who am I, and how the processes agree. Alone, all of this does nothing.

Every process sees only its own GPU, as device 0: so what torch.compile keeps on disk fits all of them.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

RANK = int(os.environ.get("RANK", "0"))
WORLD = int(os.environ.get("WORLD_SIZE", "1"))
_PATIENCE = timedelta(seconds=120)  # a process that waits longer for another gives up


def hide_other_gpus() -> None:
    """Leave this process its own GPU only; call it before CUDA starts."""
    if "LOCAL_RANK" not in os.environ:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    local = int(os.environ["LOCAL_RANK"])
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[local] if local < len(visible) and visible[local] else str(local)


def start() -> torch.device:
    """Join the other processes that torchrun started, if any; return this process's device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if WORLD > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
        dist.all_reduce(torch.ones(1, device=device))  # they fail to meet here or not at all
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    return device


def finish() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def average(gradients: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Average gradients over the processes, in one message.

    Returns:
        the gradients, views of one flat tensor, and that flat tensor.
    """
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    if WORLD > 1:
        dist.all_reduce(flat)
        flat /= WORLD
    parts = flat.split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)], flat


def make_equal(tensors: list[Tensor]) -> None:
    """Give every process the first one's values, in place; rounding must not drive them apart."""
    if WORLD == 1:
        return
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    dist.broadcast(flat, 0)
    parts = flat.split([tensor.numel() for tensor in tensors])
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def first_says(values: list[float], device: torch.device) -> list[float]:
    """The numbers that the first process holds, in every process."""
    if WORLD == 1:
        return values
    message = torch.tensor(values, dtype=torch.float64, device=device)
    dist.broadcast(message, 0)
    return message.tolist()
