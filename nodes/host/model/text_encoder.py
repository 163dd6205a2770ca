"""From a 4-bit text encoder, and what ComfyUI wants beside it, to the host's CLIP."""

from pathlib import Path

import comfy.model_management
import comfy.sd
import torch
from torch import Tensor

from ....svdq_core.checkpoint import Checkpoint
from ....svdq_core.checkpoint.encoder_read import holds_encoder_layers, read_encoder
from ....svdq_core.checkpoint.read_errors import printable, reading
from ....svdq_core.checkpoint.whole_file import read_whole
from ....svdq_core.errors import SVDQuantError
from ....svdq_core.quantized_model import QuantizedModel
from .build_errors import building
from .patcher import adopt
from .quantized_linear import operations
from .weights_in import to_state_dict

COMPUTE = "w4a16"  # its layers have no smoothing and no low-rank branch: activations stay as they are
# ComfyUI's types -> how many other files there may be beside the 4-bit one, and what they are
OTHERS = {
    "flux": (1, 1, "clip_l"),
    "sd3": (0, 2, "clip_l or clip_g, or both"),
    "hidream": (0, 1, "llama 3.1"),
    "chroma": (0, 0, ""),
    "pixart": (0, 0, ""),
    "ltxv": (0, 0, ""),
    "mochi": (0, 0, ""),
    "cogvideox": (0, 0, ""),
    "wan": (0, 0, ""),
    "lumina2": (0, 0, ""),
    "qwen_image": (0, 0, ""),
    "hunyuan_image": (0, 1, "byt5"),
    "hunyuan_video": (1, 1, "clip_l"),
    "hunyuan_video_15": (1, 1, "byt5"),
    "kandinsky5": (1, 1, "clip_l"),
    "flux2": (0, 0, ""),
    "omnigen2": (0, 0, ""),
    "krea2": (0, 0, ""),
}
# what the 4-bit file is where it is not T5
NO_T5 = tuple(OTHERS)[tuple(OTHERS).index("lumina2") :]


def load_text_encoder(
    paths: list[str],
    embeddings: list[str],
    kind: str,
    device: str,
    disable_dynamic: bool = False,
    *,
    load_device: torch.device | None = None,
):
    """Load text encoder files, one of them in 4 bits, as the host's CLIP.

    Args:
        paths: files. embeddings: folders with textual inversions. kind: a key of OTHERS.
        device: "default" or "cpu": where it runs.
        disable_dynamic: the host asks for one without dynamic VRAM this way.
        load_device: what will run it; None: where the host wants it.

    Raises:
        CheckpointError, SVDQuantError: a file is no text encoder that is wanted here.
    """
    quantized = [path for path in paths if _holds_layers(path)]
    if len(quantized) != 1:
        found = f"{len(quantized)} of them are" if quantized else "none of them is"
        raise SVDQuantError(
            f"{' and '.join(Path(path).name for path in paths)}: {found} a 4-bit T5 or other 4-bit encoder, and one "
            "must be (awq-int4-flux.1-t5xxl.safetensors, or made by Quantize Text Encoder). Load 16-bit and fp8 text "
            "encoders with Load CLIP."
        )
    least, most, names = OTHERS[kind]
    if not least <= len(paths) - 1 <= most:
        first = "one text encoder" if kind in NO_T5 else "T5"
        wanted = f"{first} and {names}" if names else f"{first} alone"
        raise SVDQuantError(
            f"type {kind} takes {wanted}, and {len(paths)} file{'s were' if len(paths) > 1 else ' was'} chosen."
        )
    options: dict = {"custom_operations": operations(COMPUTE)}
    if device == "cpu":
        options["load_device"] = options["offload_device"] = torch.device("cpu")
    if load_device is not None:
        options["load_device"] = load_device
    target = options.get("load_device", comfy.model_management.text_encoder_device())
    state_dicts = [
        to_state_dict(_read(path), COMPUTE, target) if path in quantized else read_unquantized(path) for path in paths
    ]
    with building(" + ".join(printable(Path(path).name) for path in paths)):
        clip = comfy.sd.load_text_encoder_state_dicts(
            state_dicts,
            embedding_directory=embeddings,
            clip_type=getattr(comfy.sd.CLIPType, kind.upper()),
            model_options=options,
            disable_dynamic=disable_dynamic,
        )
    adopt(clip.patcher)
    clip.patcher.model.svdquant_unused = {}
    clip.patcher.cached_patcher_init = (_load_patcher, (paths, embeddings, kind, device))
    return clip


def _load_patcher(*given, **more):
    return load_text_encoder(*given, **more).patcher


def _holds_layers(path: str) -> bool:
    return Path(path).suffix in (".safetensors", ".sft") and holds_encoder_layers(Checkpoint(Path(path)))


def _read(path: str) -> QuantizedModel:
    return read_encoder(Checkpoint(Path(path)))


def read_unquantized(path: str) -> dict[str, Tensor]:
    """A text encoder that stays as it is, in memory of its own: a mapped file must not change as long as it is used.

    Raises:
        CheckpointError: it cannot be read, or changed meanwhile.
        SVDQuantError: it is quantized in a way of ComfyUI's own, whose layers are others than ours.
    """
    name = printable(Path(path).name)
    with reading(name):
        tensors = read_whole(Path(path), name, "text encoder")
    marks = [key for key in tensors if key == "scaled_fp8" or key.endswith((".comfy_quant", ".scale_weight"))]
    if marks:
        raise SVDQuantError(
            f"{name} is quantized by ComfyUI's own means ({marks[0]}), which cannot be mixed with a 4-bit T5 in one "
            "CLIP. Choose the 16-bit file."
        )
    return tensors
