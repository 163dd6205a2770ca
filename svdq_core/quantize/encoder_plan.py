"""Text encoders in 4 bits (W4A16): the Linears of their repeated layers, each group of inputs by its least error.

Which tensors those are, names and shapes tell: Hugging Face numbers the layers of every encoder. Encoders are the
larger part of the memory that today's models take.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...kernels.format import GROUP_SIZE_AWQ
from ..checkpoint.container import Checkpoint
from ..checkpoint.dense_read import DTYPES
from ..checkpoint.encoder_read import holds_encoder_layers
from ..checkpoint.late_metadata import leave_room
from ..checkpoint.metadata import pack_version
from ..errors import CheckpointError
from ..models.others import generic_family
from .model_plan import ModelPlan, PlannedLayer, layer_bytes
from .part_plan import AWQ_ROWS, LayerPlan
from .source import hash_files
from .spec import QuantSpec
from .to_file import QuantizeJob
from .whole_model import InputsOf

TITLE = "text encoder"
FEWEST_WEIGHTS = 1 << 12
GROUPS = (64, 128)
LATE_KEY = "svdquant_result"  # of the metadata; filled in when the file is there and its text was compared
# parts that see no text, or are looked up and not multiplied with
KEPT = ("visual", "vision_", "multi_modal_projector", "audio_", "embed", "relative_attention")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class WholeNames(Mapping[str, Tensor]):
    """The tensors of a file under the names that it has, prefix included."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint

    def __getitem__(self, name: str) -> Tensor:
        return self.checkpoint[self._short(name)]

    def __iter__(self) -> Iterator[str]:
        return (self.checkpoint.prefix + name for name in self.checkpoint)

    def __len__(self) -> int:
        return len(self.checkpoint)

    def __contains__(self, name: object) -> bool:
        return (
            isinstance(name, str) and name.startswith(self.checkpoint.prefix) and self._short(name) in self.checkpoint
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading."""
        return self.checkpoint.shape(self._short(name))

    def _short(self, name: str) -> str:
        return name.removeprefix(self.checkpoint.prefix)


def plan_text_encoder(checkpoint: Checkpoint, group: int = GROUP_SIZE_AWQ) -> ModelPlan:
    """What becomes of the Linears of a text encoder.

    Args:
        group: inputs that share a scale, one of GROUPS; 64 where a layer's inputs are no multiple of 128.

    Raises:
        CheckpointError: it is quantized already, has no repeated layers, or consists of stacked experts.
    """
    if holds_encoder_layers(checkpoint):
        raise CheckpointError(f"{checkpoint.name} is a 4-bit text encoder already. Choose the 16-bit file.")
    weights = WholeNames(checkpoint)
    shapes = {name: weights.shape(name) for name in weights}
    for name in checkpoint:
        if name.endswith("weight") and len(checkpoint.shape(name)) == 2 and checkpoint.dtype(name) not in DTYPES:
            raise CheckpointError(
                f"{checkpoint.name}: {name} is {checkpoint.dtype(name)}: the text encoder is in a reduced precision "
                "already. Take the 16-bit file."
            )
    stacked = sum(math.prod(shape) for name, shape in shapes.items() if ".experts." in name and len(shape) == 3)
    if 2 * stacked > sum(math.prod(shape) for shape in shapes.values()):
        raise CheckpointError(
            f"{checkpoint.name}: most of its weights are experts in stacks of three dimensions, as gpt-oss has them, "
            "which are not quantized here. Load it with Load CLIP."
        )
    alike: dict[tuple, list[str]] = {}
    for name, shape in shapes.items():
        if name.endswith(".weight") and len(shape) == 2 and _NUMBER.search(name):
            alike.setdefault((_NUMBER.sub("*", name), shape), []).append(name.removesuffix(".weight"))
    layers = {}
    for (_, (rows, columns)), names in alike.items():
        why = _why_not(names, rows, columns)
        for name in names:
            parts = None if why else LayerPlan.text_encoder(rows, columns, group)
            found = _NUMBER.search(f"{name}.")
            block = name[: found.end()] if found else ""
            layers[name] = PlannedLayer(name, block, rows, columns, parts, name, why)
    plan = ModelPlan(TITLE, sum(math.prod(shape) for shape in shapes.values()), layers)
    if not plan.names:
        raise CheckpointError(
            f"{checkpoint.name}: no repeated layers of Linears: no text encoder that could become smaller."
        )
    return plan


def _why_not(names: list[str], rows: int, columns: int) -> str:
    if any(word in names[0] for word in KEPT):
        return "sees no text, or is looked up"
    if len(names) < 2:
        return "not repeated"
    if columns % GROUP_SIZE_AWQ or rows % AWQ_ROWS:
        return f"{rows} outputs and {columns} inputs are no multiples of {AWQ_ROWS} and {GROUP_SIZE_AWQ}"
    return "too few weights to be worth it" if rows * columns < FEWEST_WEIGHTS else ""


def bits_per_weight(plan: ModelPlan, spec: QuantSpec) -> float:
    """Of the quantized layers, scales and zero points included."""
    layers = plan.quantized
    return 8 * sum(layer_bytes(layer, spec) for layer in layers) / sum(layer.weights for layer in layers)


def text_encoder_job(
    source: Path,
    target: Path,
    device: torch.device,
    *,
    group: int = GROUP_SIZE_AWQ,
    inputs: InputsOf | None = None,
    recorded: str = "",
    measured: bool = False,
    poll: Callable[[], None] = lambda: None,
    make_room: Callable[[], None] = lambda: None,
) -> QuantizeJob:
    """What to do with a 16-bit text encoder file; for quantize_to_file.

    Args:
        group: one of GROUPS.
        inputs: makes what the layers see; None: every input counts alike.
        recorded: what those come from, in words that are the same only where the inputs are.
        measured: room is left in the metadata for LATE_KEY.
        poll, make_room: as quantize_layers.

    Raises:
        CheckpointError: see plan_text_encoder.
    """
    checkpoint = Checkpoint(source)
    plan, weights, spec = plan_text_encoder(checkpoint, group), WholeNames(checkpoint), QuantSpec(rank=0)
    origin = hash_files(checkpoint.files)
    made_with = f"torch {torch.__version__}, {device.type}"
    rounding = f"GPTQ, {recorded}" if inputs else "least squares, no data"
    method = f"W4A16, groups of {group}, {bits_per_weight(plan, spec):.2f} bits a weight, {rounding}"
    return QuantizeJob(
        architecture=generic_family(TITLE),
        plan=plan,
        weights=weights,
        names=list(weights),
        spec=spec,
        device=device,
        target=target,
        fingerprint=f"{origin}; {pack_version()}; {made_with}; {method}",
        metadata={
            "svdquant_source": checkpoint.name,
            "svdquant_source_hash": origin,
            "svdquant_method": method,
            "svdquant_made_with": made_with,
        }
        | ({LATE_KEY: leave_room()} if measured else {}),
        inputs=inputs,
        poll=poll,
        make_room=make_room,
        verify=checkpoint.check_unchanged,
        form="svdquant",
    )
