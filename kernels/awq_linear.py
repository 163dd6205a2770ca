"""One AWQ W4A16 layer part, FLUX's modulation, from activation to output.

It runs on the first step of a ladder that works, as those of linear.py; to torch.compile it is one opaque operation,
svdquant::awq_linear.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from . import reference, torch_path
from .gpus import why_no_triton
from .ladder import climb
from .svdquant_linear import dequantize


def _awq_linear(
    x: Tensor,
    qweight: Tensor,
    wscales: Tensor,
    wzeros: Tensor,
    bias: Tensor | None,
    lora_down: Tensor | None,
    lora_up: Tensor | None,
) -> Tensor:
    def with_branch(out: Tensor) -> Tensor:
        if lora_down is None or lora_up is None:
            return out
        return out + ((x.float() @ lora_down.float()) @ lora_up.float().T).to(out.dtype)

    if x.device.type == "cpu":
        return with_branch(reference.gemm_awq(x, qweight, wscales, wzeros, bias))
    tensors = {"qweight": qweight, "wscales": wscales, "wzeros": wzeros}
    steps = []
    problem = why_no_triton(x.device)
    if problem is None and x.dtype != torch.float32:
        from . import triton_path

        steps = triton_path.steps_awq(x, tensors, bias, lora_down, lora_up)

    def in_torch() -> Tensor:
        return with_branch(torch_path.linear_awq(x, dequantize(tensors, "awq"), bias))

    return climb(x.device, [*steps, ("awq in plain torch", in_torch)])


_awq_linear_op = torch.library.custom_op("svdquant::awq_linear", _awq_linear, mutates_args=())


@_awq_linear_op.register_fake
def _(x, qweight, *_others):
    return x.new_empty((x.shape[0], qweight.shape[0]))


def awq_linear(
    x: Tensor,
    tensors: Mapping[str, Tensor],
    bias: Tensor | None = None,
    lora_down: Tensor | None = None,
    lora_up: Tensor | None = None,
) -> Tensor:
    """An AWQ W4A16 part (modulation) applied to activations: (M, K) -> (M, N) of x.dtype.

    Args:
        x: (M, K) float32, bfloat16 or float16; anything but unit stride along K is copied.
        tensors: qweight, wscales, wzeros as in format.py.
        bias: (N,) or None. lora_down, lora_up: (K, r) and (N, r), strength included, or None.
    """
    run = _awq_linear_op if torch.compiler.is_compiling() else _awq_linear
    x = x if x.stride(1) == 1 else x.contiguous()
    return run(x, tensors["qweight"], tensors["wscales"], tensors["wzeros"], bias, lora_down, lora_up)
