"""What stands between quantized layers, by a kernel where that is faster: GELU, RMS norm, layer norm.

On the CPU, without Triton, where a gradient is asked for, and under torch.compile, which fuses them with their
neighbours, torch computes them.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.gpus import why_no_triton
from ..kernels.ladder import descend


def gelu_of_rows(x: Tensor) -> Tensor:
    """GELU (tanh form), contiguous; by a kernel where rows of x, (..., K), are apart."""

    def in_torch() -> Tensor:
        return F.gelu(x, approximate="tanh")

    def in_kernel() -> Tensor:
        from ..kernels.step.gelu import gelu

        return gelu(x)

    return in_torch() if x.is_contiguous() else _best("GELU", (x,), in_kernel, in_torch)


def rms_norm(x: Tensor, weight: Tensor, eps: float | None) -> Tensor:
    """torch.nn.functional.rms_norm over the last dimension of x, (..., D); weight (D,), eps None: torch's own."""

    def in_torch() -> Tensor:
        return F.rms_norm(x, weight.shape, weight, eps)

    def in_kernel() -> Tensor:
        from ..kernels.step import norm

        return norm.rms_norm(x, weight, eps)

    return _best("RMS norm", (x, weight), in_kernel, in_torch)


def layer_norm(x: Tensor, eps: float) -> Tensor:
    """torch.nn.functional.layer_norm over the last dimension of x, (..., K), without weight and bias."""

    def in_torch() -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=eps)

    def in_kernel() -> Tensor:
        from ..kernels.step import norm

        return norm.layer_norm(x, eps)

    return _best("layer norm", (x,), in_kernel, in_torch)


def _best(name: str, read: Sequence[Tensor], in_kernel: Callable[[], Tensor], in_torch: Callable[[], Tensor]) -> Tensor:
    device = read[0].device
    if torch.compiler.is_compiling() or why_no_triton(device):
        return in_torch()
    if torch.is_grad_enabled() and any(t.requires_grad for t in read):  # no kernel tells autograd what it did
        return in_torch()
    return descend(device, [(f"{name} by a kernel", in_kernel), (f"{name} in plain torch", in_torch)])
