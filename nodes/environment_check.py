"""Node: what this machine will do with SVDQuant files."""

import logging

from comfy_api.latest import io, ui

from ..svdq_core.environment import report
from .host.device import torch_device

logger = logging.getLogger("svdquant")


class SVDQuantEnvironmentCheck(io.ComfyNode):
    """Says which kernels run, which file to download and what to repair, before anybody downloads a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVDQuantEnvironmentCheck",
            display_name="Environment Check (SVDQuant)",
            category="SVDQuant",
            description="Looks at GPU, driver, torch and Triton, tries the kernels on a small layer, and says which "
            "file to download and what to repair. Needs no model; queue it alone.",
            search_aliases=["nunchaku", "Nunchaku Installer", "install wheel", "diagnostics", "system info", "doctor"],
            is_output_node=True,
            inputs=[],
            outputs=[io.String.Output(display_name="report", tooltip="The whole report; connect it to Preview Any.")],
        )

    @classmethod
    def fingerprint_inputs(cls) -> float:
        return float("nan")  # never equal to the last one: look anew each time

    @classmethod
    def execute(cls) -> io.NodeOutput:
        text = report(torch_device())
        logger.info("%s", text)
        return io.NodeOutput(text, ui=ui.PreviewText(text))
