"""From text encoder files, at least one of them in 4 bits, to the host's CLIP."""

from collections.abc import Sequence
from pathlib import Path

import comfy.model_management
import comfy.sd
import torch
from torch import Tensor

from ....svdq_core.checkpoint import Checkpoint
from ....svdq_core.checkpoint.encoder_read import holds_encoder_layers, is_tokenizer, read_encoders
from ....svdq_core.checkpoint.read_errors import printable, reading
from ....svdq_core.checkpoint.whole_file import read_whole
from ....svdq_core.errors import SVDQuantError
from .build_errors import building
from .encoder_types import clip_type, encoder_type
from .patcher import adopt
from .quantized_linear import SVDQuantLinear, operations
from .weights_in import to_state_dict

COMPUTE = "w4a16"  # its layers have no smoothing and no low-rank branch: activations stay as they are
# what a text encoder needs of a whole checkpoint: LTX-2's projection of the text
_OF_CHECKPOINTS = ("text_embedding_projection.", "embeddings_connector.")


def load_text_encoder(
    paths: list[str],
    embeddings: list[str],
    kind: str,
    device: str,
    disable_dynamic: bool = False,
    *,
    load_device: torch.device | None = None,
):
    """Load text encoder files, at least one of them in 4 bits, as the host's CLIP.

    Args:
        paths: files. embeddings: folders with textual inversions. kind: one of encoder_types.type_names.
        device: "default" or "cpu": where it runs.
        disable_dynamic: the host asks for one without dynamic VRAM this way.
        load_device: what will run it; None: where the host wants it.

    Raises:
        CheckpointError, SVDQuantError: a file is no text encoder that is wanted here.
    """
    quantized = [path for path in paths if _holds_layers(path)]
    shown = " and ".join(printable(Path(path).name) for path in paths)
    if not quantized:
        raise SVDQuantError(
            f"{shown}: none of them is a 4-bit T5 or other 4-bit encoder, and one must be "
            "(awq-int4-flux.1-t5xxl.safetensors, or made by Quantize Text Encoder). Load 16-bit and fp8 text encoders "
            "with Load CLIP."
        )
    options: dict = {"custom_operations": operations(COMPUTE)}
    if device == "cpu":
        options["load_device"] = options["offload_device"] = torch.device("cpu")
    if load_device is not None:
        options["load_device"] = load_device
    target = options.get("load_device", comfy.model_management.text_encoder_device())
    state_dicts: list[dict[str, Tensor]] = []
    for path in paths:
        state_dicts += _read(path, target) if path in quantized else [read_unquantized(path)]
    state_dicts = _with_tokenizers(state_dicts)
    _check_count(kind, len(state_dicts))
    clip = build_text_encoder(state_dicts, embeddings, kind, options, shown=shown, disable_dynamic=disable_dynamic)
    adopt(clip.patcher)
    clip.patcher.model.svdquant_unused = {}
    clip.patcher.cached_patcher_init = (_load_patcher, (paths, embeddings, kind, device))
    return clip


def build_text_encoder(
    state_dicts: list[dict[str, Tensor]],
    embeddings: list[str],
    kind: str,
    options: dict,
    *,
    shown: str,
    disable_dynamic: bool = False,
):
    """The host's CLIP of what files hold.

    Raises:
        SVDQuantError: they do not make up an encoder of this type.
    """
    with building(shown):
        clip = comfy.sd.load_text_encoder_state_dicts(
            state_dicts,
            embedding_directory=embeddings,
            clip_type=clip_type(kind),
            model_options=options,
            disable_dynamic=disable_dynamic,
        )
    modules = clip.cond_stage_model.named_modules()
    missing = [name for name, m in modules if isinstance(m, SVDQuantLinear) and m._parameters["weight"] is None]
    if missing:
        others = encoder_type(kind).others
        raise SVDQuantError(
            f"{shown}: nothing in them is {missing[0].partition('.')[0]} ({missing[0]} has no weight), which type "
            f"{kind} wants{f' beside {others}' if others else ''}. Choose another file, or another type."
        )
    return clip


def _check_count(kind: str, count: int) -> None:
    wanted = encoder_type(kind)
    if not wanted.least <= count - 1 <= wanted.most:
        words = f"{wanted.first} and {wanted.others}" if wanted.others else f"{wanted.first} alone"
        chosen = f"{count} files were" if count > 1 else "1 file was"
        raise SVDQuantError(f"type {kind} takes {words}, and {chosen} chosen.")


def _load_patcher(*given, **more):
    return load_text_encoder(*given, **more).patcher


def _holds_layers(path: str) -> bool:
    return Path(path).suffix in (".safetensors", ".sft") and holds_encoder_layers(Checkpoint(Path(path)))


def _read(path: str, device: torch.device) -> list[dict[str, Tensor]]:
    return [to_state_dict(model, COMPUTE, device) for model in read_encoders(Checkpoint(Path(path)))]


def _with_tokenizers(state_dicts: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Tokenizers that CLIPSave wrote to a file of their own, with the first encoder."""
    alone = [all(map(is_tokenizer, tensors)) for tensors in state_dicts]
    encoders = [tensors for tensors, only in zip(state_dicts, alone, strict=True) if not only]
    for tensors in (t for t, only in zip(state_dicts, alone, strict=True) if only and encoders):
        encoders[0] = tensors | encoders[0]
    return encoders


def read_unquantized(path: str) -> dict[str, Tensor]:
    """A text encoder that stays as it is, in memory of its own: a mapped file must not change as long as it is used.

    Raises:
        CheckpointError: it cannot be read, or changed meanwhile.
        SVDQuantError: it is quantized in a way of ComfyUI's own, whose layers are others than ours.
    """
    name = printable(Path(path).name)
    with reading(name):
        tensors = read_whole(Path(path), name, "text encoder", wanted=_of_text_encoders)
    marks = [key for key in tensors if key == "scaled_fp8" or key.endswith((".comfy_quant", ".scale_weight"))]
    if marks:
        raise SVDQuantError(
            f"{name} is quantized by ComfyUI's own means ({marks[0]}), which cannot be mixed with a 4-bit T5 in one "
            "CLIP. Choose the 16-bit file."
        )
    return tensors


def _of_text_encoders(names: Sequence[str]) -> list[str]:
    """Of the tensors of a file, those that a text encoder may need: a whole checkpoint holds a model besides."""
    if not any(name.startswith("model.diffusion_model.") for name in names):
        return list(names)
    return [name for name in names if any(part in name for part in _OF_CHECKPOINTS)]
