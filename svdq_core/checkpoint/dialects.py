"""Every way of storing an SVDQuant model that is read here, and how each is told from the others."""

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import CheckpointError
from .alike_layers import check_outer_scales
from .base_file import needs_base, refuse_base
from .comfy_names import CONFIG, CONFIGS, layer_configs
from .comfy_read import plan_comfy
from .container import NATIVE_FILES, Checkpoint
from .deepcompressor import plan_deepcompressor
from .lite import is_lite, plan_lite, refuse_logical, refuse_plain_modulation
from .modelopt import MARK, plan_modelopt
from .nunchaku_read import plan_nunchaku
from .packed import LAYOUT_SUFFIX, plan_packed
from .read_errors import reading
from .read_plan import Plan
from .recognize import describe_unquantized, recognize_source, refuse_sealed, refuse_text_encoder
from .row_major import is_row_major, plan_row_major
from .tile_check import check_tiles


@dataclass(frozen=True)
class Dialect:
    """One way of storing a model.

    Args:
        name: stable id; title: for messages.
        find_mark: something in a checkpoint that only this dialect has, or None.
        plan: how it is read.
        tiled: layers lie in nunchaku's tiles; only such files may lack what is not quantized.
    """

    name: str
    title: str
    find_mark: Callable[[Checkpoint], str | None]
    plan: Callable[[Checkpoint], Plan]
    tiled: bool = False

    def read_plan(self, checkpoint: Checkpoint) -> Plan:
        """How to read a checkpoint of this dialect.

        Raises:
            CheckpointError: it is damaged, or of a model that is not supported.
        """
        with reading(checkpoint.name):
            plan = self.plan(checkpoint)
            if not (self.tiled and needs_base(checkpoint, plan.architecture)):
                refuse_base(checkpoint, plan.architecture)
            return plan


def _ending(suffix: str) -> Callable[[Checkpoint], str | None]:
    return lambda checkpoint: next((name for name in checkpoint if name.endswith(suffix)), None)


def _find_native(checkpoint: Checkpoint) -> str | None:
    return next((name for name in checkpoint if name.startswith(NATIVE_FILES[0] + "/")), None)


def _find_comfy(checkpoint: Checkpoint) -> str | None:
    named = _ending(f".{CONFIG}")(checkpoint)
    return named or next(iter(layer_configs(checkpoint) if CONFIGS in checkpoint.metadata else ()), None)


def _plan_tiled(checkpoint: Checkpoint) -> Plan:
    refuse_text_encoder(checkpoint)
    check_outer_scales(checkpoint)
    if is_row_major(checkpoint):
        return plan_row_major(checkpoint)
    refuse_logical(checkpoint)
    check_tiles(checkpoint)
    if is_lite(checkpoint):
        return plan_lite(checkpoint)
    plan = plan_nunchaku(checkpoint)
    refuse_plain_modulation(checkpoint, plan.architecture)
    return plan


DIALECTS = (
    Dialect("packed", "a model saved by ComfyUI or this pack", _ending(LAYOUT_SUFFIX), plan_packed),
    Dialect("native", "deepcompressor's own output", _find_native, plan_deepcompressor),
    Dialect("comfy", "comfy-native", _find_comfy, plan_comfy),
    Dialect("modelopt", "NVIDIA ModelOpt's NVFP4_SVD", _ending(MARK), plan_modelopt),
    Dialect("nunchaku", "nunchaku", _ending(".qweight"), _plan_tiled, tiled=True),
)


def find_dialect(checkpoint: Checkpoint) -> Dialect:
    """The dialect of a checkpoint, by its content.

    Raises:
        CheckpointError: it is of none, or of several.
    """
    found = [(dialect, mark) for dialect in DIALECTS if (mark := dialect.find_mark(checkpoint)) is not None]
    if not found:
        refuse_sealed(checkpoint)
        raise CheckpointError(describe_unquantized(checkpoint))
    if len(found) > 1:
        listed = " and ".join(f"{dialect.title} ({mark})" for dialect, mark in found)
        raise CheckpointError(f"{checkpoint.name}: layers are stored in several formats: {listed}. It is damaged.")
    return found[0][0]


def plan_checkpoint(checkpoint: Checkpoint) -> Plan:
    """How to read a checkpoint of any dialect.

    Raises:
        CheckpointError: it is of none, of several, or of a model that is not supported.
    """
    return find_dialect(checkpoint).read_plan(checkpoint)


def wanted_second_file(checkpoint: Checkpoint) -> str:
    """What a checkpoint needs beside it, in words for a user, because it holds quantized layers only; "" if nothing.

    Raises:
        CheckpointError: as plan_checkpoint.
    """
    if not find_dialect(checkpoint).tiled or is_row_major(checkpoint):
        return ""
    family = recognize_source(checkpoint.name, checkpoint)
    return family.base_file if needs_base(checkpoint, family) else ""
