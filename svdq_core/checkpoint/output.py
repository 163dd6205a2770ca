"""What a writer puts into a file: named tensors whose shape and dtype are known before they are computed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ArchitectureError


@dataclass(frozen=True)
class Output:
    """One tensor of a file to be.

    Args:
        name: full name in the file.
        shape, dtype: of the tensor.
        blocks: makes it, in consecutive pieces along its first dimension, so that it need not be in memory whole.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Callable[[], Iterable[Tensor]]

    @property
    def nbytes(self) -> int:
        count = self.dtype.itemsize
        for size in self.shape:
            count *= size
        return count

    def tensor(self) -> Tensor:
        """All of it, contiguous and on the CPU."""
        blocks = [block.cpu() for block in self.blocks()]
        whole = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        return whole.contiguous()


def whole(name: str, tensor: Tensor, change: Callable[[Tensor], Tensor] | None = None) -> Output:
    """A tensor that is there, possibly changed in a way that keeps shape and dtype."""
    make = (lambda: [tensor]) if change is None else (lambda: [change(tensor)])
    return Output(name, tuple(tensor.shape), tensor.dtype, make)


def cast(tensor: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """The tensor in a file's 16-bit dtype.

    Raises:
        ArchitectureError: a value is too large for it; `what` names the tensor.
    """
    if tensor.dtype == dtype:
        return tensor
    result = tensor.to(dtype)
    if tensor.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(result))).all()):
        largest = float(tensor.float().abs().max())
        name = str(dtype).removeprefix("torch.")
        raise ArchitectureError(
            f"{what} reaches {largest:.4g}, more than {name} holds ({torch.finfo(dtype).max:.4g}). Write another "
            "format."
        )
    return result
