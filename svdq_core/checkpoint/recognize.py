"""Which model family a checkpoint holds, decided by the names in it and never by its own name."""

from collections.abc import Iterable

from ..errors import CheckpointError
from ..models import FAMILIES, SUPPORTED, Architecture
from .container import Checkpoint

# families that have no description here -> pieces of names that only they have, in diffusers' spelling
_OTHERS = {
    "SANA": ("inverted_conv",),
}


def recognize_source(file: str, names: Iterable[str]) -> Architecture:
    """The family of a checkpoint with nunchaku's or diffusers' names, in the spelling of its publisher.

    Raises:
        CheckpointError: a family that is known and not supported, or an unknown one.
    """
    names = list(names)
    family = _recognize(file, names, [(family, family.source_marks) for family in FAMILIES])
    return next((v for v in family.variants if any(_occurs(mark, names) for mark in v.source_marks)), family)


def recognize_host(file: str, names: Iterable[str]) -> Architecture:
    """The family of a checkpoint with ComfyUI's names.

    Raises:
        CheckpointError: as recognize_source.
    """
    return _recognize(file, list(names), [(family, family.host_marks) for family in FAMILIES])


def recognize_dense(file: str, names: Iterable[str]) -> Architecture:
    """The family of an unquantized checkpoint, under ComfyUI's names or diffusers'.

    Raises:
        CheckpointError: as recognize_source.
    """
    return _recognize(file, list(names), [(family, family.source_marks + family.host_marks) for family in FAMILIES])


def _recognize(file: str, names: list[str], marks: list[tuple[Architecture, tuple[str, ...]]]) -> Architecture:
    for title, its_marks in _OTHERS.items():
        if any(_occurs(mark, names) for mark in its_marks):
            raise CheckpointError(f"{file}: {title} recognised, not supported yet. Supported: {SUPPORTED}.")
    for architecture, its_marks in marks:
        if any(_occurs(mark, names) for mark in its_marks):
            return architecture
    first = next((name for name in names if name.endswith(".qweight")), names[0] if names else "none")
    raise CheckpointError(f"{file}: quantized layers of an unknown model (first: {first}). Supported: {SUPPORTED}.")


def _occurs(mark: str, names: list[str]) -> bool:
    if mark.startswith("^"):
        return any(name.startswith(mark[1:]) for name in names)
    return any(mark in name for name in names)


def refuse_text_encoder(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError where the quantized layers are those of a 4-bit T5."""
    dtypes = {checkpoint.dtype(name) for name in checkpoint if name.endswith(".qweight")}
    if dtypes == {"I16"}:
        raise CheckpointError(
            f"{checkpoint.name}: this is a 4-bit text encoder (T5), not a diffusion model. Use Load SVDQuant Text "
            "Encoder."
        )


def describe_unquantized(checkpoint: Checkpoint) -> str:
    """One sentence about a file without SVDQuant layers: what it is, and what to do with it."""
    if not len(checkpoint):
        return f"{checkpoint.name}: the file holds no tensors."
    dtypes = {checkpoint.dtype(name) for name in checkpoint}
    kind = "an fp8" if any(d.startswith("F8") for d in dtypes) else "an unquantized"
    return (
        f"{checkpoint.name}: this is {kind} model ({', '.join(sorted(dtypes))}), without SVDQuant layers. "
        "Load it with Load Diffusion Model, and use Quantize Model (SVDQuant) to make an SVDQuant file of it."
    )
