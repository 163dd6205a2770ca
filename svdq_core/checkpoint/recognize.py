"""Which model family a checkpoint holds, decided by the names in it and never by its own name."""

from collections.abc import Iterable

from ..errors import CheckpointError
from ..models import FAMILIES, SUPPORTED, Architecture
from ..models.others import generic_family, occurs, other_family
from .container import PREFIXES, Checkpoint

SEALED_SEARCH = 1000  # characters of a text that are looked through


def recognize_source(file: str, names: Iterable[str], row_major: bool = False) -> Architecture:
    """The family of a checkpoint with nunchaku's or diffusers' names, in the spelling of its publisher.

    Args:
        row_major: the publisher is vLLM-Omni.

    Raises:
        CheckpointError: a family that is known and not supported, or an unknown one.
    """
    names = list(names)
    family = _find(names, "source")
    if not isinstance(family, Architecture):
        raise CheckpointError(_refusal(file, names, family))
    if row_major:
        return family.row_major or family
    return next((v for v in family.variants if any(occurs(mark, names) for mark in v.source_marks)), family)


def recognize_host(file: str, names: Iterable[str]) -> Architecture:
    """The family of a checkpoint with ComfyUI's names; a generic one where none is described.

    Raises:
        CheckpointError: there are no names, or only some have a prefix of other tools.
    """
    names = list(names)
    if not names:
        raise CheckpointError(_refusal(file, names, ""))
    family = _find(names, "host")
    if isinstance(family, Architecture):
        return family
    prefixed = next((name for name in names if name.startswith(PREFIXES)), None)
    if prefixed is not None:  # or all of them would be without it here
        others = next((name for name in names if not name.startswith(PREFIXES)), "but another one")
        raise CheckpointError(
            f"{file}: some tensors have a prefix of other tools ({prefixed}), others have none ({others}): the file "
            "holds more than one model, or is damaged."
        )
    return generic_family(family)


def recognize_dense(file: str, names: Iterable[str]) -> Architecture:
    """The family of an unquantized checkpoint, under ComfyUI's names or diffusers'.

    Raises:
        CheckpointError: as recognize_source.
    """
    names = list(names)
    found = [_find(names, side) for side in ("source", "host")]
    family = next((family for family in found if isinstance(family, Architecture)), None)
    if family is None:
        raise CheckpointError(_refusal(file, names, next((title for title in found if isinstance(title, str)), "")))
    return family


def _find(names: list[str], side: str) -> Architecture | str:
    """A described family, or the title of another one, or "" """
    title = other_family(names, side, before=True)
    if title:
        return title
    for family in FAMILIES:
        if any(occurs(mark, names) for mark in getattr(family, f"{side}_marks")):
            return family
    return other_family(names, side, before=False)


def _refusal(file: str, names: list[str], title: str) -> str:
    if title:
        return f"{file}: {title} recognised, not supported yet. Supported: {SUPPORTED}."
    first = next((name for name in names if name.endswith(".qweight")), names[0] if names else "none")
    return f"{file}: quantized layers of an unknown model (first: {first}). Supported: {SUPPORTED}."


def refuse_text_encoder(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError where the quantized layers are those of a 4-bit T5."""
    dtypes = {checkpoint.dtype(name) for name in checkpoint if name.endswith(".qweight")}
    if dtypes == {"I16"}:
        raise CheckpointError(
            f"{checkpoint.name}: this is a 4-bit text encoder (T5), not a diffusion model. Use Load Text "
            "Encoder (SVDQuant)."
        )


def refuse_sealed(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError where a file without layers of any kind says that QuantFunc made it."""
    said = [checkpoint.name, *checkpoint.metadata, *checkpoint.metadata.values(), *checkpoint]
    if any("quantfunc" in text[:SEALED_SEARCH].lower() for text in said):
        raise CheckpointError(
            f"{checkpoint.name}: a sealed QuantFunc file, which only QuantFunc's own program reads. Take the same "
            "model in nunchaku's layout, as svdq-int4_r32-... or svdq-fp4_r32-..., or quantize the 16-bit model."
        )


def describe_unquantized(checkpoint: Checkpoint) -> str:
    """One sentence about a file without SVDQuant layers: what it is, and what to do with it."""
    if not len(checkpoint):
        return f"{checkpoint.name}: the file holds no tensors."
    dtypes = {checkpoint.dtype(name) for name in checkpoint}
    reduced = any(dtype.startswith("F8") for dtype in dtypes)
    says = f"{checkpoint.name}: this file has no SVDQuant layers ({', '.join(sorted(dtypes))})."
    try:
        family = recognize_dense(checkpoint.name, checkpoint)
    except CheckpointError:  # a VAE, a text encoder, a model of another family
        return f"{says} If it is a diffusion model, load it with Load Diffusion Model."
    if reduced:
        return (
            f"{says} It is an fp8 {family.title} model: load it with Load Diffusion Model. To quantize it, take BF16."
        )
    return (
        f"{says} It is a 16-bit {family.title} model: load it with Load Diffusion Model, and use Quantize Model "
        "(SVDQuant) to make a 4-bit file of it."
    )
