"""Tensors that one quantized layer of a file lacks and the others have: where a format may do without, all do or none.

An outer scale that is missing is read as 1, a missing low-rank branch as none: in one layer of many that is damage, and
would draw noise.
"""

from ..errors import CheckpointError
from .container import Checkpoint
from .nunchaku_names import NEWER_SUFFIXES, OLDER_SUFFIXES

_NVFP4 = "F8_E4M3"  # dtype of the scales


def check_alike(checkpoint: Checkpoint) -> None:
    """Look at the names of a file with nunchaku's tensors.

    Raises:
        CheckpointError: a layer has no outer scale, or no low-rank branch, and another of its kind has one.
    """
    layers = [n.removesuffix(".qweight") for n in checkpoint if n.endswith(".qweight")]
    # modulation layers have zero points, and a branch only where a LoRA was merged in
    layers = [n for n in layers if f"{n}.wscales" in checkpoint and f"{n}.wzeros" not in checkpoint]
    scaled = [n for n in layers if checkpoint.dtype(f"{n}.wscales") == _NVFP4]
    branches = tuple({names[half] for names in (OLDER_SUFFIXES, NEWER_SUFFIXES) for half in ("proj_down", "proj_up")})
    _all_or_none(checkpoint, scaled, ("wtscale", "wcscales"), "its scales have no scale of their own, neither")
    smoothed = [n for n in layers if checkpoint.dtype(f"{n}.qweight") != "I32"]
    _all_or_none(checkpoint, smoothed, branches, "it has no low-rank branch, neither")


def _all_or_none(checkpoint: Checkpoint, layers: list[str], tensors: tuple[str, ...], what: str) -> None:
    lacking = [n for n in layers if not any(f"{n}.{tensor}" in checkpoint for tensor in tensors)]
    if lacking and len(lacking) < len(layers):
        more = f" (nor have {len(lacking) - 1} more layers)" if len(lacking) > 1 else ""
        others = len(layers) - len(lacking)
        raise CheckpointError(
            f"{checkpoint.name}: {lacking[0]}: {what} {' nor '.join(sorted(tensors))}{more}, and {others} other layers "
            "of the file have one. It is incomplete; download or convert it again."
        )
