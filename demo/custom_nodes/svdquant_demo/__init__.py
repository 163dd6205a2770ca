"""Nodes that only the demo needs: conditioning without a text encoder.

The demo copies this folder, with scenes.py beside this file, into the custom_nodes of the host that it starts.
"""

import torch
from comfy_api.latest import ComfyExtension, io

from . import scenes
from .naive import DemoNaiveLoader


class DemoSceneConditioning(io.ComfyNode):
    """Conditioning of the demo's FLUX from a caption."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DemoSceneConditioning",
            display_name="Scene Caption (SVDQuant demo)",
            category="svdquant/demo",
            description="Turns a caption of the demo's few words into the conditioning of the demo's FLUX.",
            inputs=[
                io.String.Input(
                    "caption",
                    default="a large red circle on a plain white background",
                    tooltip="One of the sentences that the demo model was taught; demo/scenes.py lists them.",
                )
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, caption: str) -> io.NodeOutput:
        scenes.read_caption(caption)  # another sentence would give a picture that shows nothing about quantization
        context, pooled = scenes.encode(caption)
        return io.NodeOutput([[context, {"pooled_output": pooled}]])


class DemoSeededConditioning(io.ComfyNode):
    """Random conditioning, the same for the same seed, for models whose weights are random too."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DemoSeededConditioning",
            display_name="Seeded Conditioning (SVDQuant demo)",
            category="svdquant/demo",
            description="Random conditioning from a seed. It says nothing; it feeds a model for comparison.",
            inputs=[
                io.Int.Input("tokens", default=16, min=1, max=512),
                io.Int.Input("width", default=4096, min=1, max=8192, tooltip="4096 for PixArt."),
                io.Int.Input("seed", default=0, min=0, max=2**32 - 1),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, tokens: int, width: int, seed: int) -> io.NodeOutput:
        generator = torch.Generator().manual_seed(seed)
        return io.NodeOutput([[torch.randn(1, tokens, width, generator=generator), {}]])


class DemoExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [DemoSceneConditioning, DemoSeededConditioning, DemoNaiveLoader]


async def comfy_entrypoint() -> DemoExtension:
    return DemoExtension()
