"""What the tensors of a part stand for: its weight, and the int8 scales that w4a8 brings it to."""

from collections.abc import Mapping

from torch import Tensor

from . import reference
from .gpus import why_no_triton
from .ladder import descend


def dequantize(tensors: Mapping[str, Tensor], scheme: str) -> Tensor:
    """The weight of one part in float32, (N, K); except for awq the residual in smoothed coordinates."""
    if scheme == "int4":
        return reference.dequantize_int4(tensors["qweight"], tensors["wscales"])
    if scheme == "nvfp4":
        extra = tensors.get("wtscale"), tensors.get("wcscales")
        return reference.dequantize_nvfp4(tensors["qweight"], tensors["wscales"], *extra)
    if scheme == "int8":
        return reference.dequantize_int8(tensors["qweight"], tensors["wscales"])
    return reference.dequantize_awq(tensors["qweight"], tensors["wscales"], tensors["wzeros"])


def rows_of(tensors: Mapping[str, Tensor], scheme: str, rows: slice) -> dict[str, Tensor]:
    """What `dequantize` reads of some output channels."""
    found = {name: tensors[name][rows] for name in ("qweight", "wcscales") if name in tensors}
    found |= {name: tensors[name][:, rows] for name in ("wscales", "wzeros") if name in tensors and scheme != "int8"}
    if scheme == "int8":
        found["wscales"] = tensors["wscales"][rows]
    if "wtscale" in tensors:
        found["wtscale"] = tensors["wtscale"]
    return found


def find_channel_scales(tensors: Mapping[str, Tensor], scheme: str) -> Tensor:
    """The int8 scale of each output channel that w4a8 needs, (N,) float32; may be kept with the layer's tensors.

    Args:
        tensors: qweight, wscales, wtscale, wcscales of format.py, as the scheme has them.
    """

    def in_kernel() -> Tensor:
        from .step.requantize_weight import requantize_weight

        return requantize_weight(tensors, scheme).channel_scales

    def in_torch() -> Tensor:
        return reference.requantize_int8(dequantize(tensors, scheme)).channel_scales

    device = tensors["qweight"].device
    steps = [("int8 scales from a kernel", in_kernel)] if why_no_triton(device) is None else []
    return descend(device, [*steps, ("int8 scales in plain torch", in_torch)])
