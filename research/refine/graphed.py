"""A module whose forward and backward are CUDA graphs: layers this small take longer to be launched than to run."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class _Positional(nn.Module):
    """A module and a way to call it with tensors alone, which is what a graph takes."""

    def __init__(self, module: nn.Module, call: Callable[..., Any]):
        super().__init__()
        self.module, self._call = module, call

    def forward(self, *tensors: Tensor) -> Any:
        return self._call(self.module, *tensors)


def graphed(module: nn.Module, call: Callable[..., Any], tensors: Sequence[Tensor]) -> Callable[..., Any]:
    """A function of tensors like these that computes call(module, *tensors) and its gradients.

    Its result is overwritten by the next call. Without a GPU it is the call itself.
    """
    positional = _Positional(module, call)
    if not tensors[0].is_cuda:
        return positional
    try:
        return torch.cuda.make_graphed_callables(positional, tuple(tensors))
    except RuntimeError as error:  # an operation that cannot be captured on this torch
        print(f"without CUDA graphs, which takes longer: {str(error).splitlines()[0]}", flush=True)
        return positional
