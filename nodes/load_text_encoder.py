"""Node: 4-bit text encoder file -> CLIP."""

from comfy_api.latest import io

from .checked_inputs import checked
from .host import files
from .host.model.encoder_types import type_names
from .host.model.text_encoder import load_text_encoder

NO_FILE = "none"


class SVDQuantTextEncoderLoader(io.ComfyNode):
    """Loads a 4-bit text encoder, with the other text encoders that a model wants beside it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        beside = [NO_FILE, *files.list_text_encoders(quantized_first=False)]
        return io.Schema(
            node_id="SVDQuantTextEncoderLoader",
            display_name="Load Text Encoder (SVDQuant)",
            category="SVDQuant",
            description="Loads a 4-bit text encoder: nunchaku's T5-XXL (awq-int4-flux.1-t5xxl.safetensors) or a file "
            "of Quantize Text Encoder; for FLUX.1 together with clip_l. The CLIP works with the ordinary nodes.",
            search_aliases=["nunchaku", "Nunchaku Text Encoder Loader", "t5xxl", "awq", "4-bit", "DualCLIPLoader"],
            inputs=[
                io.Combo.Input(
                    "text_encoder",
                    options=files.list_text_encoders(),
                    tooltip="The 4-bit file, in models/text_encoders.",
                ),
                io.Combo.Input(
                    "type",
                    options=type_names(),
                    default="flux",
                    tooltip="The model that reads the text, as in ComfyUI's own CLIP loaders.",
                ),
                io.Combo.Input(
                    "second",
                    options=[*beside, *files.list_projections()],
                    default=NO_FILE,
                    optional=True,
                    tooltip="What the model reads beside it: clip_l for flux, hunyuan_video and kandinsky5; clip_l or "
                    "clip_g for sd3; llama 3.1 for hidream; byt5 for hunyuan_image; for LTX-2, its text projection or "
                    "its checkpoint. It may be a 4-bit file, too.",
                ),
                io.Combo.Input(
                    "third",
                    options=beside,
                    default=NO_FILE,
                    optional=True,
                    tooltip="For sd3 and hidream: clip_l or clip_g.",
                ),
                io.Combo.Input(
                    "device",
                    options=["default", "cpu"],
                    default="default",
                    optional=True,
                    advanced=True,
                    tooltip="default: where ComfyUI wants it. cpu: takes no memory of the card.",
                ),
                io.Combo.Input(
                    "fourth",
                    options=beside,
                    default=NO_FILE,
                    optional=True,
                    advanced=True,
                    tooltip="For hidream with all four: clip_g.",
                ),
            ],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        text_encoder: str,
        *,
        type: str,
        second: str = NO_FILE,
        third: str = NO_FILE,
        device: str = "default",
        fourth: str = NO_FILE,
    ) -> str:
        return "".join(map(files.fingerprint, _paths(text_encoder, second, third, fourth))) + type + device

    @classmethod
    @checked
    def execute(
        cls,
        text_encoder: str,
        *,
        type: str,
        second: str = NO_FILE,
        third: str = NO_FILE,
        device: str = "default",
        fourth: str = NO_FILE,
    ) -> io.NodeOutput:
        paths = _paths(text_encoder, second, third, fourth)
        return io.NodeOutput(load_text_encoder(paths, files.embedding_folders(), type, device))


def _paths(*names: str) -> list[str]:
    return [files.text_encoder_path(name) for name in names if name != NO_FILE]
