"""What follows the products of a GEMM: its specification in plain torch, for reference.py, and where it goes."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Epilogue(NamedTuple):
    """What is done with the (M, N) result of a layer; w4a8 does it in its GEMM.

    Args:
        out: (M, N) of the result's dtype to write to, unit stride along N; None: a new tensor.
        accumulate: add the result to what out holds.
        gelu_from: first column of the result that goes through GELU (tanh form), after the sum; None: none does.
    """

    out: Tensor | None = None
    accumulate: bool = False
    gelu_from: int | None = None


NOTHING_MORE = Epilogue()


def settle(result: Tensor, epilogue: Epilogue) -> Tensor:
    """The epilogue of a finished result, (M, N), which may be written over."""
    out, accumulate, gelu_from = epilogue
    if out is None:
        out = result
    elif accumulate:
        out.add_(result)
    else:
        out.copy_(result)
    if gelu_from is not None:
        activated = out[:, gelu_from:]
        before = activated.clone() if out.requires_grad else activated  # autograd keeps it
        activated.copy_(F.gelu(before, approximate="tanh"))
    return out


def destination(epilogue: Epilogue, M: int, N: int, x_down: Tensor) -> Tensor:
    """The epilogue's out, or if it is None a new (M, N) tensor of x_down's dtype and device.

    Raises:
        ValueError: accumulate without out.
    """
    if epilogue.out is not None:
        return epilogue.out
    if epilogue.accumulate:
        raise ValueError("accumulate adds to what out holds, but out is None: pass out, or leave accumulate off")
    return torch.empty((M, N), dtype=x_down.dtype, device=x_down.device)


def finish(
    products: Tensor, x_down: Tensor, proj_up: Tensor, bias: Tensor | None = None, epilogue: Epilogue = NOTHING_MORE
) -> Tensor:
    """products + x_down @ proj_up.T + bias [+ out], through GELU where wanted.

    Args:
        products: (M, N) float32. x_down: (M, R), proj_up: (N, R), bias: (N,) or None.
        epilogue: what out holds is added in float32, before the one rounding; what goes through GELU (tanh form) does
            so rounded, in float32, and is rounded again.

    Returns:
        (M, N) of x_down.dtype: the epilogue's out, if it has one.

    Raises:
        ValueError: accumulate without out.
    """
    result = destination(epilogue, *products.shape, x_down)
    total = products + x_down.float() @ proj_up.float().T
    if bias is not None:
        total = total + bias.float()
    if epilogue.accumulate:
        total = total + result.float()
    result.copy_(total)
    if epilogue.gelu_from is not None:
        activated = result[:, epilogue.gelu_from :]
        activated.copy_(F.gelu(activated.float(), approximate="tanh"))
    return result
