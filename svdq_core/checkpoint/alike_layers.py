"""What one quantized layer of a file lacks and the others have, where the format may do without: then all do or none.

An outer scale of NVFP4 that is missing is read as 1: in one layer of many that is damage, and would draw noise. A layer
without a low-rank branch is none: recipes leave it out for kinds of layers.
"""

from ..errors import CheckpointError
from .container import Checkpoint

_NVFP4 = "F8_E4M3"  # dtype of the scales
_OUTER = ("wtscale", "wcscales")


def check_outer_scales(checkpoint: Checkpoint) -> None:
    """Look at the names of a file with nunchaku's tensors.

    Raises:
        CheckpointError: a layer has no outer scale, and another has one.
    """
    scales = [name for name in checkpoint if name.endswith(".wscales") and checkpoint.dtype(name) == _NVFP4]
    layers = [name.removesuffix(".wscales") for name in scales]
    lacking = [name for name in layers if not any(f"{name}.{outer}" in checkpoint for outer in _OUTER)]
    if lacking and len(lacking) < len(layers):
        more = f" (nor have {len(lacking) - 1} more layers)" if len(lacking) > 1 else ""
        raise CheckpointError(
            f"{checkpoint.name}: {lacking[0]}: its scales have no scale of their own, neither {' nor '.join(_OUTER)}"
            f"{more}, and {len(layers) - len(lacking)} other layers of the file have one. It is incomplete; download "
            "or convert it again."
        )
