"""Calls of quantized parts as tests write them, and the paths that may take them."""

from torch import Tensor

from svdquant_pack.kernels.epilogue import NOTHING_MORE, Epilogue
from svdquant_pack.kernels.joined_factors import branch_of
from svdquant_pack.kernels.layer_call import Factors, LayerCall
from svdquant_pack.kernels.paths import layer_paths


def layer_call(
    x: Tensor,
    tensors: dict[str, Tensor],
    scheme: str,
    mode: str,
    bias: Tensor | None = None,
    *,
    lora: tuple[Tensor, Tensor] | None = None,
    act_unsigned: bool = False,
    gelu: bool = False,
    epilogue: Epilogue = NOTHING_MORE,
) -> LayerCall:
    """A call with the part's own low-rank branch, and a LoRA's factors behind it."""
    own = Factors(tensors["proj_down"], tensors["proj_up"]) if "proj_down" in tensors else None
    branch = branch_of(own, None if lora is None else Factors(*lora))
    return LayerCall(x, tensors, scheme, mode, branch, bias, act_unsigned, gelu, epilogue)


def run_layer(*arguments, **options) -> Tensor:
    """What layer_call's call comes to."""
    return layer_paths.run(layer_call(*arguments, **options))


def kernel_paths(call: LayerCall) -> list[layer_paths.KernelPath]:
    """The paths through kernels that could take a call if its device were a GPU, whatever the generation."""
    paths = layer_paths.paths_for(call.scheme, call.mode)
    return [p for p in paths if isinstance(p, layer_paths.KernelPath) and p.why_not_for(call) is None]


def on_reference(call: LayerCall) -> Tensor:
    """The oracle: the call's result before its epilogue, on any device."""
    from svdquant_pack.kernels.paths.on_cpu import compute

    return compute(call)
