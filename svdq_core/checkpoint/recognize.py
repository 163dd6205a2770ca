"""Which model family a checkpoint holds, decided by the names in it and never by its own name."""

from collections.abc import Iterable

from ..errors import CheckpointError
from ..models import FLUX, PIXART, SUPPORTED, Architecture
from .container import Checkpoint

# beginning of a name that only this family has, in the checkpoints' names and in the host's -> family
_SOURCE_MARKS = {
    "single_transformer_blocks.0.": FLUX,
    "transformer_blocks.0.norm1_context.": FLUX,
    "adaln_single.": PIXART,
    "transformer_blocks.0.attn2.": PIXART,
}
_HOST_MARKS = {
    "double_blocks.": FLUX,
    "single_blocks.": FLUX,
    "blocks.0.cross_attn.q_linear.": PIXART,
    "t_block.1.": PIXART,
}
# a piece of a name that only this family has, in either
_KNOWN_MARKS = {
    "distilled_guidance_layer.": "Chroma",
    "to_qkv_mlp_proj.": "FLUX.2",
    "double_stream_modulation": "FLUX.2",
    "img_mod.1.": "Qwen-Image",
    "feed_forward.net.": "Z-Image",
    "noise_refiner.": "Z-Image",
    "down_blocks.": "SDXL",
    "input_blocks.": "SDXL",
    "inverted_conv": "SANA",
}


def recognize_source(file: str, names: Iterable[str]) -> Architecture:
    """The family of a checkpoint with diffusers' names for its blocks.

    Raises:
        CheckpointError: a family that is known and not supported yet, or an unknown one.
    """
    return _recognize(file, list(names), _SOURCE_MARKS)


def recognize_host(file: str, names: Iterable[str]) -> Architecture:
    """The family of a checkpoint with the host's names.

    Raises:
        CheckpointError: as recognize_source.
    """
    return _recognize(file, list(names), _HOST_MARKS)


def _recognize(file: str, names: list[str], marks: dict[str, Architecture]) -> Architecture:
    for mark, title in _KNOWN_MARKS.items():
        if any(mark in name for name in names):
            raise CheckpointError(f"{file}: {title} recognised, not supported yet. Supported: {SUPPORTED}.")
    for mark, architecture in marks.items():
        if any(name.startswith(mark) for name in names):
            return architecture
    first = next((name for name in names if name.endswith(".qweight")), names[0] if names else "none")
    raise CheckpointError(f"{file}: quantized layers of an unknown model (first: {first}). Supported: {SUPPORTED}.")


def refuse_text_encoder(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError where the quantized layers are those of a 4-bit T5."""
    dtypes = {checkpoint.dtype(name) for name in checkpoint if name.endswith(".qweight")}
    if dtypes == {"I16"}:
        raise CheckpointError(
            f"{checkpoint.name}: this is a 4-bit text encoder (T5), not a diffusion model. Use a text-encoder loader."
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
