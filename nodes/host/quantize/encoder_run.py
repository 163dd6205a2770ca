"""Quantizing a text encoder file, and comparing what comes out of it with the 16-bit encoder's text."""

import gc
import hashlib
import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import comfy.model_management
import torch
from torch import Tensor

from ....svdq_core.checkpoint import Checkpoint, require_space
from ....svdq_core.checkpoint.late_metadata import fill_in
from ....svdq_core.checkpoint.save import writing
from ....svdq_core.errors import SVDQuantError
from ....svdq_core.quantize.encoder_plan import LATE_KEY, bits_per_weight, plan_text_encoder, text_encoder_job
from ....svdq_core.quantize.model_plan import ModelPlan
from ....svdq_core.quantize.prompts import HELD_OUT
from ....svdq_core.quantize.to_file import Outcome, QuantizeJob, quantize_to_file
from ..device import torch_device
from ..files import embedding_folders
from ..model.text_encoder import load_text_encoder
from .encoder_source import load_16_bit
from .encoder_text import difference, encode
from .layer_progress import LayerProgress
from .prompt_inputs import PromptInputs
from .quantize_job import make_room

logger = logging.getLogger("svdquant")

COPIES = 2  # on the disk at the end: finished layers, and the file put together from them
FEWEST_PROMPTS = 5


@dataclass(frozen=True)
class EncoderRun:
    """What came of it.

    Args:
        outcome: of the layers. plan: what became of the Linears. bits: of a quantized weight.
        errors: of the text, relative, by prompt; empty where it was not compared.
        note: why it was not, or "".
    """

    outcome: Outcome
    plan: ModelPlan
    bits: float
    errors: dict[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass
class _Source:
    """The 16-bit encoder as long as it is needed, and what it makes of the prompts."""

    path: Path
    clip: object = None
    kind: str = ""
    exact: list[list[Tensor]] = field(default_factory=list)
    note: str = ""

    def load(self, prompts: Sequence[str], needed: bool) -> None:
        """Load it and let it read prompts; where ComfyUI cannot do that and nothing else needs it, say so."""
        try:
            self.clip, self.kind = load_16_bit(self.path)
            self.exact = [encode(self.clip, prompt) for prompt in prompts]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # ComfyUI's classes fail in every way on what they are not made for
            comfy.model_management.throw_exception_if_processing_interrupted()
            self.note = f"ComfyUI makes no conditioning of this encoder by itself ({error}); its text was not compared"
            self.exact = []
            if needed:
                raise SVDQuantError(f"{self.path.name}: {self.note}. Choose method fast.") from error

    def release(self) -> None:
        self.clip = None
        gc.collect()  # the host's patchers hold on to themselves
        comfy.model_management.soft_empty_cache()


def quantize_text_encoder(
    source: Path, target: Path, *, group: int, prompts: Sequence[str] | None, compare: bool
) -> EncoderRun:
    """Quantize a 16-bit text encoder file into a 4-bit one.

    Args:
        source: the file. target: where the new one goes; it takes that name when everything is done.
        group: inputs that share a scale.
        prompts: what the layers are to be rounded by (GPTQ); None: by their weights alone.
        compare: run both on HELD_OUT.

    Raises:
        CheckpointError: the file is no 16-bit text encoder. SVDQuantError: see quantize_to_file; too few prompts; with
            prompts, ComfyUI cannot load this encoder by itself.
    """
    plan, origin = plan_text_encoder(Checkpoint(source), group), _Source(source)
    if prompts is not None and len(prompts) < FEWEST_PROMPTS:
        raise SVDQuantError(
            f"{len(prompts)} prompts are too few to round by: write {FEWEST_PROMPTS} or more, one a line."
        )
    if compare or prompts is not None:
        origin.load(HELD_OUT if compare else HELD_OUT[:1], needed=prompts is not None)
    if prompts is None:
        origin.release()
    unnamed = target.with_stem(f"{target.stem}-unfinished")  # until its text was compared
    measured = compare and bool(origin.exact)
    job = _job(origin, unnamed, plan, group=group, prompts=prompts, measured=measured)
    require_space(target, COPIES * plan.nbytes(job.spec))
    with writing(target):
        progress = LayerProgress({layer.name: layer.weights for layer in plan.quantized})
        outcome = quantize_to_file(job, progress.step)
        assert outcome is not None  # only further processes get none
        origin.release()
        errors = _compare(unnamed, origin) if measured else {}
        if errors:
            fill_in(unnamed, LATE_KEY, sentence(errors))
        unnamed.replace(target)
    return EncoderRun(outcome, plan, bits_per_weight(plan, job.spec), errors, origin.note)


def _job(
    origin: _Source, target: Path, plan: ModelPlan, *, group: int, prompts: Sequence[str] | None, measured: bool
) -> QuantizeJob:
    blocks = {layer.name: layer.block for layer in plan.quantized}
    inputs, recorded = None, ""
    if prompts is not None:
        inputs = lambda weights: PromptInputs(origin.clip, prompts, blocks)  # noqa: E731
        recorded = f"{len(prompts)} prompts {_digest(prompts)}"
    return text_encoder_job(
        origin.path,
        target,
        torch_device(),
        group=group,
        inputs=inputs,
        recorded=recorded,
        measured=measured,
        poll=LayerProgress.poll,
        make_room=make_room,
    )


def _compare(path: Path, origin: _Source) -> dict[str, float]:
    clip = load_text_encoder([str(path)], embedding_folders(), origin.kind, "default")
    return {
        prompt: difference(encode(clip, prompt), exact) for prompt, exact in zip(HELD_OUT, origin.exact, strict=True)
    }


def sentence(errors: dict[str, float]) -> str:
    """The error of the text, for people and for the metadata of a file."""
    return (
        f"relative error of the text, mean over tokens: {statistics.fmean(errors.values()):.4f} "
        f"(largest of {len(errors)} prompts: {max(errors.values()):.4f})"
    )


def _digest(prompts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:12]
