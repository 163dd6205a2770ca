"""Node: 4-bit text encoder file -> CLIP."""

from comfy_api.latest import io

from .checked_inputs import checked
from .host import files
from .host.model.text_encoder import OTHERS, load_text_encoder

NO_FILE = "none"


class SVDQuantTextEncoderLoader(io.ComfyNode):
    """Loads a 4-bit text encoder, with the other text encoders that a model wants beside it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = files.list_text_encoders()
        return io.Schema(
            node_id="SVDQuantTextEncoderLoader",
            display_name="Load Text Encoder (SVDQuant)",
            category="SVDQuant",
            description="Loads a 4-bit text encoder: nunchaku's T5-XXL (awq-int4-flux.1-t5xxl.safetensors) or a file "
            "of Quantize Text Encoder; for FLUX.1 together with clip_l. The CLIP works with the ordinary nodes.",
            search_aliases=["nunchaku", "Nunchaku Text Encoder Loader", "t5xxl", "awq", "4-bit", "DualCLIPLoader"],
            inputs=[
                io.Combo.Input("text_encoder", options=names, tooltip="The 4-bit file, in models/text_encoders."),
                io.Combo.Input(
                    "type",
                    options=list(OTHERS),
                    default="flux",
                    tooltip="The model that reads the text, as in ComfyUI's own CLIP loaders.",
                ),
                io.Combo.Input(
                    "second",
                    options=[NO_FILE, *names],
                    default=NO_FILE,
                    optional=True,
                    tooltip="What the model reads beside it: clip_l for flux, hunyuan_video and kandinsky5; clip_l or "
                    "clip_g for sd3; llama 3.1 for hidream; byt5 for hunyuan_image.",
                ),
                io.Combo.Input(
                    "third", options=[NO_FILE, *names], default=NO_FILE, optional=True, tooltip="For sd3: clip_g."
                ),
                io.Combo.Input(
                    "device",
                    options=["default", "cpu"],
                    default="default",
                    optional=True,
                    advanced=True,
                    tooltip="default: where ComfyUI wants it. cpu: takes no memory of the card.",
                ),
            ],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def fingerprint_inputs(
        cls, text_encoder: str, type: str, second: str = NO_FILE, third: str = NO_FILE, device: str = "default"
    ) -> str:
        return "".join(map(files.fingerprint, _paths(text_encoder, second, third))) + type + device

    @classmethod
    @checked
    def execute(
        cls, text_encoder: str, type: str, second: str = NO_FILE, third: str = NO_FILE, device: str = "default"
    ) -> io.NodeOutput:
        paths = _paths(text_encoder, second, third)
        return io.NodeOutput(load_text_encoder(paths, files.embedding_folders(), type, device))


def _paths(*names: str) -> list[str]:
    return [files.text_encoder_path(name) for name in names if name != NO_FILE]
