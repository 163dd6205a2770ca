"""Node: 16-bit text encoder file -> 4-bit text encoder file."""

import logging
import statistics
import time
from pathlib import Path

from comfy_api.latest import io, ui

from ..svdq_core.quantize.encoder_plan import GROUPS
from ..svdq_core.quantize.prompts import split_prompts
from ..svdq_core.quantize.spec import METHODS
from .checked_inputs import checked
from .host import files
from .host.quantize.encoder_run import EncoderRun, quantize_text_encoder, sentence

logger = logging.getLogger("svdquant")

FOLDER = "clip"  # below output/; ComfyUI lists what lies there among its text encoders
MARK = "awq-int4"  # behind the name: in front of it, it would be first in all of ComfyUI's lists
WORST_SHOWN = 3
FAST, BEST = METHODS


class SVDQuantQuantizeTextEncoder(io.ComfyNode):
    """Quantizes a text encoder file to 4 bits."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVDQuantQuantizeTextEncoder",
            display_name="Quantize Text Encoder (SVDQuant)",
            category="SVDQuant",
            description="Makes a 4-bit file (W4A16) of a 16-bit text encoder: T5-XXL, Qwen2.5-VL, Qwen3, Gemma, Llama. "
            "Load it with Load Text Encoder (SVDQuant).",
            search_aliases=["svdq", "awq", "gptq", "t5xxl", "qwen", "gemma", "llama", "4-bit", "compress", "clip"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "text_encoder",
                    options=files.list_text_encoders(quantized_first=False),
                    tooltip="A file in BF16 or FP16, in models/text_encoders.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="my-text-encoder",
                    tooltip=f"The file becomes output/clip/<this>-{MARK}.safetensors.",
                ),
                io.Boolean.Input(
                    "overwrite", default=False, tooltip="Replace a file of that name. Off: the new file gets a number."
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default=FAST,
                    optional=True,
                    tooltip="fast: by the weights. best: the encoder reads prompts, and errors are made to cancel "
                    "on them (GPTQ); it needs room for the 16-bit encoder.",
                ),
                io.Combo.Input(
                    "group",
                    options=[str(group) for group in GROUPS],
                    default=str(GROUPS[0]),
                    optional=True,
                    advanced=True,
                    tooltip="Inputs that share a scale. 64: 4.5 bits a weight. 128: 4.25 in the file, a little less "
                    "exact.",
                ),
                io.Boolean.Input(
                    "compare",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Let the 16-bit and the 4-bit encoder read eight prompts and report how far they differ.",
                ),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    optional=True,
                    advanced=True,
                    tooltip="For best: prompts of your own, one a line. Empty: forty varied ones.",
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
    def execute(
        cls,
        text_encoder: str,
        *,
        filename_prefix: str,
        overwrite: bool,
        method: str = FAST,
        group: str = str(GROUPS[0]),
        compare: bool = True,
        prompts: str = "",
    ) -> io.NodeOutput:
        started = time.perf_counter()
        source = Path(files.text_encoder_path(text_encoder))
        path = files.output_path(f"{filename_prefix.strip()}-{MARK}", overwrite, FOLDER)
        chosen = split_prompts(prompts) if method == BEST else None
        run = quantize_text_encoder(source, path, group=int(group), prompts=chosen, compare=compare)
        report = describe(path, source, run, time.perf_counter() - started)
        logger.info("%s", report)
        return io.NodeOutput(str(path), report, ui=ui.PreviewText(report))


def describe(path: Path, source: Path, run: EncoderRun, seconds: float) -> str:
    """The report of a run."""
    reports = run.outcome.reports
    errors = {report.layer: report.relative_error for report in reports}
    worst = sorted(errors, key=lambda name: -errors[name])[:WORST_SHOWN]
    before, after = (file.stat().st_size for file in (source, path))
    measured = any(report.measured for report in reports)
    lines = [
        f"{path.name}: {len(errors)} layers in {seconds:.1f} s, {after / 2**30:.2f} GiB "
        f"({source.name}: {before / 2**30:.2f} GiB); {run.plan.share():.0%} of the parameters at {run.bits:.2f} bits",
        *([sentence(run.errors)] if run.errors else []),
        *([run.note] if run.note else []),
        f"relative output error of a layer, on {'held-out prompts' if measured else 'inputs without correlations'}: "
        f"mean {statistics.fmean(errors.values()):.4f}, largest "
        + ", ".join(f"{name} {errors[name]:.4f}" for name in worst),
    ]
    gptq = sum(report.rounding == "gptq" for report in reports)
    if measured:
        lines.append(
            f"{gptq} layers rounded by GPTQ, {len(reports) - gptq} to the nearest value, which was better there"
        )
    return "\n".join([*lines, *(f"kept in 16 bits: {why}" for why in run.outcome.kept)])
