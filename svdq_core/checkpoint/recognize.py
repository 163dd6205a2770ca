"""Which model family a checkpoint holds, decided by its tensors and never by its file name."""

from ..errors import CheckpointError
from ..models import FLUX, PIXART, SUPPORTED, Architecture
from .container import Checkpoint

# a piece that only this family's tensor names contain -> family
_SUPPORTED_MARKS = {
    "single_transformer_blocks.0.": FLUX,
    "transformer_blocks.0.norm1_context.": FLUX,
    "adaln_single.": PIXART,
    "transformer_blocks.0.attn2.": PIXART,
}
_KNOWN_MARKS = {
    "distilled_guidance_layer.": "Chroma",
    "to_qkv_mlp_proj.": "FLUX.2",
    "double_stream_modulation": "FLUX.2",
    "img_mod.1.": "Qwen-Image",
    "feed_forward.net.": "Z-Image",
    "noise_refiner.": "Z-Image",
    "down_blocks.": "SDXL",
    "inverted_conv": "SANA",
}


def recognize(checkpoint: Checkpoint) -> Architecture:
    """The family of a nunchaku-style checkpoint.

    Raises:
        CheckpointError: not an SVDQuant file, or of a family that is known and not supported yet.
    """
    names = list(checkpoint)
    quantized = [name for name in names if name.endswith(".qweight")]
    if not quantized:
        raise CheckpointError(_describe_other(checkpoint, names))
    if all(checkpoint.dtype(name) == "I16" for name in quantized):
        raise CheckpointError(
            f"{checkpoint.name}: this is a 4-bit text encoder (T5), not a diffusion model. Use a text-encoder loader."
        )
    for mark, title in _KNOWN_MARKS.items():
        if any(mark in name for name in names):
            raise CheckpointError(f"{checkpoint.name}: {title} recognised, not supported yet. Supported: {SUPPORTED}.")
    for mark, architecture in _SUPPORTED_MARKS.items():
        if any(name.startswith(mark) for name in names):
            return architecture
    raise CheckpointError(
        f"{checkpoint.name}: quantized layers of an unknown model (first: {quantized[0]}). Supported: {SUPPORTED}."
    )


def _describe_other(checkpoint: Checkpoint, names: list[str]) -> str:
    if not names:
        return f"{checkpoint.name}: the file holds no tensors."
    if any(name.endswith((".comfy_quant", ".proj_down")) for name in names):
        return f"{checkpoint.name}: comfy-native quantized layers recognised, not supported yet."
    dtypes = {checkpoint.dtype(name) for name in names}
    kind = "an fp8" if any(d.startswith("F8") for d in dtypes) else "an unquantized"
    return (
        f"{checkpoint.name}: this is {kind} model ({', '.join(sorted(dtypes))}), without SVDQuant layers. "
        "Load it with Load Diffusion Model, and use Quantize Model (SVDQuant) to make an SVDQuant file of it."
    )
