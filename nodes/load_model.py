"""Node: SVDQuant file -> MODEL."""

import logging

from comfy_api.latest import io

from ..svdq_core.runtime import COMPUTE_CHOICES
from .host import files
from .host.attention import CHOICES as ATTENTION_CHOICES
from .host.model.build import load_model_with_status

logger = logging.getLogger("svdquant")


class SVDQuantModelLoader(io.ComfyNode):
    """Loads nunchaku-style SVDQuant files without a compiled extension."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVDQuantModelLoader",
            display_name="Load SVDQuant Model",
            category="SVDQuant",
            description="Loads a 4-bit SVDQuant model (svdq-*.safetensors) of FLUX.1 or PixArt. The MODEL works with "
            "the ordinary nodes: LoRA, ControlNet, samplers.",
            search_aliases=["nunchaku", "Nunchaku FLUX DiT Loader", "svdq", "int4", "nvfp4", "4-bit"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=files.list_models(),
                    tooltip="A .safetensors file or legacy folder in models/diffusion_models.",
                ),
                io.Combo.Input(
                    "compute",
                    options=list(COMPUTE_CHOICES),
                    default="auto",
                    tooltip="auto: the fastest mode that is at least as accurate as w4a4 on this GPU. w4a4: 4-bit "
                    "activations, as the paper. w4a8: 8-bit activations, a better picture. w4a16: activations "
                    "untouched.",
                ),
                io.Combo.Input(
                    "attention",
                    options=list(ATTENTION_CHOICES),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="auto: cuDNN's attention where it is faster than the one that ComfyUI takes by itself, "
                    "unless you or another node chose one. comfyui: always ComfyUI's.",
                ),
            ],
            outputs=[
                io.Model.Output(),
                io.String.Output(display_name="status", tooltip="What was loaded, and which kernels run it."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str, compute: str, attention: str = "auto") -> str:
        return files.fingerprint(files.model_path(model_name)) + compute + attention

    @classmethod
    def execute(cls, model_name: str, compute: str, attention: str = "auto") -> io.NodeOutput:
        model, status = load_model_with_status(files.model_path(model_name), compute, attention=attention)
        logger.info("loaded %s", status)
        return io.NodeOutput(model, status)
