"""Node: SVDQuant file -> MODEL."""

import logging

from comfy_api.latest import io, ui

from ..svdq_core.models import SUPPORTED
from ..svdq_core.runtime import COMPUTE_CHOICES
from .checked_inputs import checked
from .host import files
from .host.attention import CHOICES as ATTENTION_CHOICES
from .host.memory_words import memory_line
from .host.model.build import load_model_with_status

logger = logging.getLogger("svdquant")

NO_FILE = "none"


class SVDQuantModelLoader(io.ComfyNode):
    """Loads nunchaku-style SVDQuant files without a compiled extension."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = files.list_models()
        return io.Schema(
            node_id="SVDQuantModelLoader",
            display_name="Load Model (SVDQuant)",
            category="SVDQuant",
            description="Loads a 4-bit SVDQuant model (svdq-*.safetensors). The MODEL works with the ordinary nodes: "
            f"LoRA, ControlNet, samplers. Families: {SUPPORTED}.",
            search_aliases=[
                "nunchaku",
                "Nunchaku FLUX DiT Loader",
                "Load SVDQuant Model",
                "svdq",
                "int4",
                "nvfp4",
                "4-bit",
            ],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=names,
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
                io.Combo.Input(
                    "second_file",
                    options=[NO_FILE, *names],
                    default=NO_FILE,
                    optional=True,
                    advanced=True,
                    tooltip="The 16-bit model, for a file that holds quantized layers only (MiniMax H3). Without it, "
                    "loading says which file is wanted.",
                ),
            ],
            outputs=[
                io.Model.Output(),
                io.String.Output(
                    display_name="status",
                    tooltip="What was loaded, which kernels run it, and the memory it takes; the node shows it, too.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls, model_name: str, compute: str, attention: str = "auto", second_file: str = NO_FILE
    ) -> str:
        prints = [files.fingerprint(files.model_path(name)) for name in (model_name, second_file) if name != NO_FILE]
        return "".join(prints) + compute + attention

    @classmethod
    @checked
    def execute(
        cls, model_name: str, compute: str, attention: str = "auto", second_file: str = NO_FILE
    ) -> io.NodeOutput:
        base = None if second_file == NO_FILE else files.model_path(second_file)
        model, status = load_model_with_status(files.model_path(model_name), compute, base, attention=attention)
        status = f"{status}; {memory_line(model)}"
        logger.info("loaded %s", status)
        return io.NodeOutput(model, status, ui=ui.PreviewText(status))
