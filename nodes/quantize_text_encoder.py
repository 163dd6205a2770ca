"""Node: 16-bit text encoder file -> 4-bit text encoder file."""

import logging
import statistics
import time
from pathlib import Path

from comfy_api.latest import io, ui

from ..svdq_core.checkpoint import require_space
from ..svdq_core.quantize.encoder_plan import text_encoder_job
from ..svdq_core.quantize.to_file import Outcome, quantize_to_file
from .checked_inputs import checked
from .host import files
from .host.device import torch_device
from .host.quantize.layer_progress import LayerProgress

logger = logging.getLogger("svdquant")

FOLDER = "clip"  # below output/; ComfyUI lists what lies there among its text encoders
COPIES = 2  # on the disk at the end: finished layers, and the file put together from them
WORST_SHOWN = 3


class SVDQuantQuantizeTextEncoder(io.ComfyNode):
    """Quantizes a text encoder file to 4 bits."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVDQuantQuantizeTextEncoder",
            display_name="Quantize Text Encoder (SVDQuant)",
            category="SVDQuant",
            description="Makes a 4-bit file (W4A16) of a 16-bit text encoder: T5-XXL, Qwen2.5-VL, Qwen3, Gemma, Llama. "
            "It needs no data and takes a minute. Load it with Load Text Encoder (SVDQuant).",
            search_aliases=["svdq", "awq", "t5xxl", "qwen", "gemma", "llama", "4-bit", "compress", "clip"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "text_encoder",
                    options=files.list_text_encoders(),
                    tooltip="A file in BF16 or FP16, in models/text_encoders.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="my-text-encoder",
                    tooltip="The file becomes output/clip/awq-int4-<this>.safetensors.",
                ),
                io.Boolean.Input(
                    "overwrite", default=False, tooltip="Replace a file of that name. Off: the new file gets a number."
                ),
            ],
            outputs=[
                io.String.Output(display_name="path"),
                io.String.Output(display_name="report", tooltip="Sizes, errors, and what stays in 16 bits."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, text_encoder: str, **inputs) -> str:
        return files.fingerprint(files.text_encoder_path(text_encoder))

    @classmethod
    @checked
    def execute(cls, text_encoder: str, filename_prefix: str, overwrite: bool) -> io.NodeOutput:
        started = time.perf_counter()
        source = Path(files.text_encoder_path(text_encoder))
        folder, _, stem = filename_prefix.strip().rpartition("/")
        name = f"awq-int4-{stem}"
        path = files.output_path(f"{folder}/{name}" if folder else name, overwrite, FOLDER)
        job = text_encoder_job(source, path, torch_device(), LayerProgress.poll)
        require_space(path, COPIES * job.plan.nbytes(job.spec))
        progress = LayerProgress({layer.name: layer.weights for layer in job.plan.quantized})
        outcome = quantize_to_file(job, progress.step)
        assert outcome is not None  # only further processes get none
        report = describe(path, source, outcome, time.perf_counter() - started)
        logger.info("%s", report)
        return io.NodeOutput(str(path), report, ui=ui.PreviewText(report))


def describe(path: Path, source: Path, outcome: Outcome, seconds: float) -> str:
    """The report of a run."""
    errors = {report.layer: report.relative_error for report in outcome.reports}
    worst = sorted(errors, key=lambda name: -errors[name])[:WORST_SHOWN]
    lines = [
        f"{path.name}: {len(errors)} layers in {seconds:.1f} s, {path.stat().st_size / 2**30:.2f} GiB "
        f"({source.name}: {source.stat().st_size / 2**30:.2f} GiB)",
        "relative output error of a layer, on inputs without correlations: mean "
        f"{statistics.fmean(errors.values()):.4f}, largest {', '.join(f'{name} {errors[name]:.4f}' for name in worst)}",
    ]
    return "\n".join([*lines, *(f"kept in 16 bits: {sentence}" for sentence in outcome.kept)])
