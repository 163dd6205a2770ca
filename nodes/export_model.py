"""Node: SVDQuant MODEL -> file in a format that others read."""

import logging

from comfy_api.latest import io, ui

from ..svdq_core.checkpoint.formats import FORMATS, save_model
from .checked_inputs import checked
from .host import files
from .host.model.extract import extract_model
from .host.progress import Progress

logger = logging.getLogger("svdquant")


class SVDQuantExportModel(io.ComfyNode):
    """Writes a loaded SVDQuant model, LoRAs included, to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVDQuantExportModel",
            display_name="Export Model (SVDQuant)",
            category="SVDQuant",
            description="Writes an SVDQuant model to output/diffusion_models. LoRAs on it are kept as extra rank.",
            search_aliases=["save", "nunchaku", "comfy-native", "convert", "dequantize", "merge lora"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="A model from Load or Quantize; LoRAs on it are kept."),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default="nunchaku",
                    tooltip="nunchaku: the single file that nunchaku and this pack read. comfy: the svdquant_w4a4 "
                    "layout of comfy-kitchen, INT4 only. bf16: the full-precision model that it stands for. svdquant: "
                    "this pack's own, for every precision.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="svdq-my-model",
                    tooltip="File name without ending; subfolders with /.",
                ),
                io.Boolean.Input(
                    "overwrite", default=False, tooltip="Replace a file of that name. Off: the new file gets a number."
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where the file was written.")],
        )

    @classmethod
    @checked
    def execute(cls, model, format: str, filename_prefix: str, overwrite: bool = False) -> io.NodeOutput:
        path = files.output_path(filename_prefix, overwrite)
        quantized = extract_model(model)
        form = FORMATS[format](quantized.architecture)
        progress = Progress(len(quantized.layers) + len(quantized.plain))
        save_model(path, quantized, form, progress.step)
        size = f"{path.stat().st_size / 2**30:.2f} GiB"
        logger.info("wrote %s: %s, %s", path, form.title, size)
        for note in form.notes:
            logger.warning("%s: %s", path.name, note)
        text = "\n".join([f"{path.name}: {form.title}, {size}", *form.notes])
        return io.NodeOutput(str(path), ui=ui.PreviewText(text))
