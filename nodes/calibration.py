"""Nodes: record the inputs of a model's layers while it draws, and write them to a file."""

import logging

from comfy_api.latest import io, ui

from ..svdq_core.quantize.calibration_fit import TOKENS_PER_CHANNEL
from .checked_inputs import checked
from .host.quantize.record_calibration import RunningCalibration, calibration_of, start_calibration

logger = logging.getLogger("svdquant")

CalibrationFile = io.Custom("SVDQUANT_CALIBRATION")  # a wire: full path of a calibration file
NAMED = 6  # layers of each kind that a report names
FEWEST_TIMES = 4  # distinct times below which a calibration says little about the others


class SVDQuantCalibrationStart(io.ComfyNode):
    """Lets a model record while prompts run; Save writes what was seen."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVDQuantCalibrationStart",
            display_name="Start Calibration (SVDQuant)",
            category="SVDQuant",
            description="Returns a model that records what its layers see while it draws your prompts, for Quantize "
            "Model. The pictures stay the same, bit for bit. Every prompt that you queue adds to the calibration.",
            search_aliases=["svdq", "calibrate", "capture activations", "Krea2SVDQuantCaptureStart", "record"],
            inputs=[
                io.Model.Input("model", tooltip="The full-precision model; LoRAs on it are seen as they act."),
                io.String.Input(
                    "name",
                    default="my-calibration",
                    tooltip="Name of the calibration; its file is output/svdquant_calibration/<this>.safetensors.",
                ),
                io.Int.Input(
                    "take",
                    default=1,
                    min=1,
                    max=0xFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Same name, same take: prompts add up, even after a restart. Another number starts over.",
                ),
                io.Int.Input(
                    "tokens",
                    default=512,
                    min=64,
                    max=8192,
                    step=64,
                    tooltip="Tokens kept of each input. 512 take 1.8 GB of memory and file for FLUX.1; fewer of more "
                    "prompts are better than many of a few. Counts for a new take.",
                ),
                io.Int.Input(
                    "gram_mib",
                    default=2048,
                    min=0,
                    max=65536,
                    step=256,
                    tooltip="Main memory in MiB for Hessians (correlations of channels), which best rounds with; "
                    "layers beyond it use their tokens. More is better and slows calibration. Counts for a new take.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="Records while it runs. Connect it to the sampler and to Save Calibration.")
            ],
        )

    @classmethod
    @checked
    def execute(cls, model, name: str, take: int, tokens: int, gram_mib: int) -> io.NodeOutput:
        return io.NodeOutput(start_calibration(model, name.strip(), take, tokens, gram_mib))


class SVDQuantCalibrationSave(io.ComfyNode):
    """Writes the calibration after the sampler has run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVDQuantCalibrationSave",
            display_name="Save Calibration (SVDQuant)",
            category="SVDQuant",
            description="Writes what Start Calibration has recorded so far to output/svdquant_calibration, after the "
            "sampler whose latent leads through this node.",
            search_aliases=["svdq", "calibrate", "capture activations", "Krea2SVDQuantCaptureSave", "record"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of Start Calibration, or of a node behind it."),
                io.Latent.Input("samples", tooltip="From the sampler: so that this node runs after it."),
            ],
            outputs=[
                io.Latent.Output(tooltip="The latent as it came."),
                CalibrationFile.Output(display_name="calibration", tooltip="For Quantize Model."),
                io.String.Output(display_name="report", tooltip="What was seen, and what was not."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, model, samples: dict) -> io.NodeOutput:
        calibration = calibration_of(model)
        path = calibration.save()
        text = "\n".join([str(path), *describe(calibration)])
        logger.info("%s", text)
        return io.NodeOutput(samples, str(path), text, ui=ui.PreviewText(text))


def describe(calibration: RunningCalibration) -> list[str]:
    """What a calibration holds, line by line."""
    numbers, hessians = calibration.collector.summary(), calibration.collector.hessian_names()
    lines = [
        f"take {calibration.take}: {calibration.prompts} prompts, {calibration.calls} steps at "
        f"{len(calibration.times)} times",
        f"{numbers['inputs']} of {len(calibration.layers)} layers, at least {numbers['fewest_tokens']} tokens each, "
        f"{calibration.collector.nbytes / 2**20:.1f} MiB",
        f"correlations of {len(hessians)} layers" + (f": {_some(hessians)}" if hessians else ""),
    ]
    if calibration.interrupted:
        lines.append(f"{calibration.interrupted} of the prompts were interrupted; what they had drawn counts")
    if calibration.patched:
        lines.append("LoRAs were on the model: the inputs are as they make them")
    if calibration.unseen:
        lines.append(f"never seen: {len(calibration.unseen)} layers, {_some(calibration.unseen)}")
    if numbers["dropped_tokens"]:
        lines.append(f"left out: {numbers['dropped_tokens']} tokens that were NaN or infinite; try a BF16 model")
    scarce = [name for name in calibration.collector.scarce(TOKENS_PER_CHANNEL) if name not in calibration.modulation]
    if scarce:
        lines.append(
            f"few rows: {len(scarce)} layers saw fewer than {TOKENS_PER_CHANNEL} for each channel, {_some(scarce)}; "
            "record more prompts"
        )
    if len(calibration.times) < FEWEST_TIMES:
        lines.append(f"few times: record at least {FEWEST_TIMES} steps, or other steps stay unknown")
    return lines


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
