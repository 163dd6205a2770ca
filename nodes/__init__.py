"""The nodes, as ComfyUI's V3 extension."""

from comfy_api.latest import ComfyExtension, io

from .apply_lora import SVDQuantLoraLoader
from .calibration import SVDQuantCalibrationSave, SVDQuantCalibrationStart
from .compare_images import SVDQuantCompareImages
from .environment_check import SVDQuantEnvironmentCheck
from .export_model import SVDQuantExportModel
from .load_model import SVDQuantModelLoader
from .load_text_encoder import SVDQuantTextEncoderLoader
from .lora_stack import SVDQuantLoraStack
from .quantize_model import SVDQuantQuantizeModel
from .quantize_text_encoder import SVDQuantQuantizeTextEncoder


class SVDQuantExtension(ComfyExtension):
    """All nodes of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            SVDQuantModelLoader,
            SVDQuantTextEncoderLoader,
            SVDQuantLoraLoader,
            SVDQuantLoraStack,
            SVDQuantCalibrationStart,
            SVDQuantCalibrationSave,
            SVDQuantQuantizeModel,
            SVDQuantQuantizeTextEncoder,
            SVDQuantExportModel,
            SVDQuantCompareImages,
            SVDQuantEnvironmentCheck,
        ]


async def comfy_entrypoint() -> ComfyExtension:
    """What ComfyUI calls when it loads the pack."""
    return SVDQuantExtension()
