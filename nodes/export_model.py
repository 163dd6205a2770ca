"""Node: SVDQuant MODEL -> file in a format that others read."""

import logging

from comfy_api.latest import io

from ..svdq_core.checkpoint import save_tensors, to_nunchaku
from .host import files
from .host.model import extract_model

logger = logging.getLogger("svdquant")

FORMATS = {"nunchaku": to_nunchaku}


class SVDQuantExportModel(io.ComfyNode):
    """Writes a loaded SVDQuant model, LoRAs included, to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVDQuantExportModel",
            display_name="Export SVDQuant Model",
            category="SVDQuant",
            description="Writes an SVDQuant model to output/diffusion_models. LoRAs on it are kept as extra rank.",
            search_aliases=["save", "nunchaku", "convert", "merge lora"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="A model from Load or Quantize; LoRAs on it are kept."),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default="nunchaku",
                    tooltip="nunchaku: the single-file layout that nunchaku, diffusers and this pack read.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="svdq-my-model",
                    tooltip="File name without ending; subfolders with /.",
                ),
                io.Boolean.Input("overwrite", default=False, tooltip="Replace a file of that name."),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where the file was written.")],
        )

    @classmethod
    def execute(cls, model, format: str, filename_prefix: str, overwrite: bool = False) -> io.NodeOutput:
        path = files.output_path(filename_prefix, overwrite)
        tensors, metadata = FORMATS[format](extract_model(model))
        save_tensors(path, tensors, metadata)
        logger.info("wrote %s: %d tensors, %.2f GiB", path, len(tensors), path.stat().st_size / 2**30)
        return io.NodeOutput(str(path))
