"""A copy of ComfyUI's model that holds everything but its large weights, to run it apart from the MODEL it comes from.

The MODEL may be anywhere, on the GPU, half on the CPU, with patches or none, or without memory: the copy shares nothing
with it that a run could change, so no hook and no cast ever touches what the user goes on with.
"""

import copy
from collections.abc import Callable
from typing import Any

import comfy.model_base
import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LARGE = (nn.Linear, *CONVOLUTIONS)  # whose weights a copy has on the meta device
NOISE_LIMIT = 1 << 20  # larger tensors are one number everywhere


def replicate(
    model: comfy.model_base.BaseModel,
    tensor: Callable[[str], Tensor],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> comfy.model_base.BaseModel:
    """A copy whose diffusion_model computes in `dtype` on `device`; its Linears and convolutions have no weights.

    Args:
        tensor: makes the value of any other tensor, by its name in the diffusion_model.
    """
    network = model.diffusion_model
    large = {
        f"{name}.{end}" for name, m in network.named_modules() if isinstance(m, LARGE) for end in ("weight", "bias")
    }
    memo: dict[int, object] = {}
    for name, old in [*network.named_parameters(), *network.named_buffers()]:
        if name in large:
            new = torch.empty(old.shape, dtype=dtype, device="meta")
        else:
            new = tensor(name)
            new = new.to(device, dtype if new.is_floating_point() else new.dtype)
        memo[id(old)] = nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
    for module in network.modules():
        paged = module.__dict__.get("_v")  # a page of ComfyUI's dynamic memory
        if paged is not None:
            memo[id(paged)] = None
    twin = copy.copy(model)
    twin.__dict__ = dict(model.__dict__)
    twin._modules = dict(model._modules)
    twin.current_patcher = None  # type: ignore[assignment]
    twin.manual_cast_dtype = dtype
    twin.diffusion_model = copy.deepcopy(network, memo)
    for module in twin.diffusion_model.modules():
        _forget_patches(module)
        if isinstance(getattr(module, "dtype", None), torch.dtype):
            module.dtype = dtype
    move_attributes(twin.diffusion_model, device)
    return twin


def _forget_patches(module: nn.Module) -> None:
    for name in ("weight_function", "bias_function"):
        if getattr(module, name, None):
            setattr(module, name, [])
    module.__dict__.pop("_v", None)
    module._forward_hooks.clear()
    module._forward_pre_hooks.clear()


def move_attributes(network: nn.Module, device: torch.device) -> None:
    """Tensors that a module keeps as plain attributes."""
    for module in network.modules():
        for name, value in list(module.__dict__.items()):
            if isinstance(value, Tensor):
                module.__dict__[name] = value.to(device)


def values_or_noise(network: nn.Module) -> Callable[[str], Tensor]:
    """For replicate(): the model's own small tensors, and noise for those without memory or too large to copy."""
    tensors = dict([*network.named_parameters(), *network.named_buffers()])
    generator = torch.Generator().manual_seed(0)

    def tensor(name: str) -> Tensor:
        own = tensors[name]
        if own.numel() <= NOISE_LIMIT and not own.is_meta:
            return own.detach().to("cpu", copy=True)
        if not own.is_floating_point():
            return torch.zeros(own.shape, dtype=own.dtype)
        if own.numel() > NOISE_LIMIT:
            return torch.full((1,), 0.5).expand(own.shape)
        return torch.rand(own.shape, generator=generator)

    return tensor


def route(
    twin: comfy.model_base.BaseModel,
    linear: Callable[[str], Callable],
    tensors: Callable[[str, Tensor], tuple[Tensor, Tensor | None]],
) -> None:
    """Let a copy's Linears and convolutions run on weights that lie elsewhere.

    Args:
        linear: makes the forward of a Linear, by its name. tensors: weight and bias of a convolution for an input.
    """
    for name, module in twin.diffusion_model.named_modules():
        if isinstance(module, nn.Linear):
            module.__dict__["forward"] = linear(name)
        elif isinstance(module, CONVOLUTIONS):
            module.__dict__["forward"] = _convolution(name, module, tensors)


def _convolution(
    name: str, module: nn.Module, tensors: Callable[[str, Tensor], tuple[Tensor, Tensor | None]]
) -> Callable:
    bare = next(kind for kind in CONVOLUTIONS if isinstance(module, kind))

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        weight, bias = tensors(name, x)
        if hasattr(bare, "_conv_forward"):
            return bare._conv_forward(module, x, weight, bias)  # type: ignore[attr-defined]
        transposed = getattr(nn.functional, f"conv_transpose{weight.ndim - 2}d")
        stride, padding, rest = module.stride, module.padding, module.output_padding
        return transposed(x, weight, bias, stride, padding, rest, module.groups, module.dilation)

    return forward
