"""A family of tests/families in the sizes that a benchmark asks for: its plan, its random layers, a step's inputs.

Which layers are quantized is what a published file of the family holds, or else what Quantize Model would choose.
"""

import argparse
from functools import cached_property
from typing import TYPE_CHECKING, Any

from random_flux import Draw

if TYPE_CHECKING:
    import torch

    from svdquant_pack.svdq_core.layer import QuantizedLayer
    from svdquant_pack.svdq_core.quantize.model_plan import ModelPlan, PlannedLayer

# families of the tests -> the description that their published files have
DESCRIBED = {"flux1": "flux"} | {
    n: n for n in ("flux2", "chroma", "zimage", "krea2", "qwen_image", "minimax_h3", "sdxl")
}
COUNTS = ("depth", "depth_single_blocks", "num_layers", "n_layers", "layers")  # of blocks, in classes' arguments


def torch_device(options: argparse.Namespace) -> "torch.device":
    """The device of the options."""
    import torch

    return torch.device(options.device)


class Subject:
    """A family of tests/families, in the sizes that the options ask for."""

    def __init__(self, options: argparse.Namespace):
        from families.registry import FAMILIES

        self.name, self.options, self.family = options.model, options, FAMILIES[options.model]
        self.config = self.family.tiny_config if options.tiny else dict(self.family.published)
        if options.blocks:
            self.config |= {key: min(options.blocks, self.config[key]) for key in COUNTS if key in self.config}

    @cached_property
    def plan(self) -> "ModelPlan":
        """Which layers are quantized, and how."""
        from comfy.ops import disable_weight_init

        from svdquant_pack.nodes.host.quantize.trace import trace_model
        from svdquant_pack.svdq_core.models import ARCHITECTURES
        from svdquant_pack.svdq_core.quantize.layout_plan import plan_layout, spare_idle_layers
        from svdquant_pack.svdq_core.quantize.plan_rules import plan_model

        traced = trace_model(self.build(disable_weight_init, "meta"))[0]
        if self.name not in DESCRIBED:
            return plan_model(traced)
        shapes = {linear.name: (linear.out_features, linear.in_features) for linear in traced}
        return spare_idle_layers(plan_layout(ARCHITECTURES[DESCRIBED[self.name]], shapes, traced.parameters), traced)

    @cached_property
    def layers(self) -> "list[PlannedLayer]":
        """What is quantized here."""
        return self.plan.quantized

    @cached_property
    def tensors(self) -> "dict[str, torch.Tensor]":
        """Every tensor of the 16-bit model, without memory; some are float32 in a few families."""
        from comfy.ops import disable_weight_init

        return self.build(disable_weight_init, "meta").diffusion_model.state_dict()

    @property
    def is_video(self) -> bool:
        from families.video_models import VIDEO_MODELS

        return self.name in VIDEO_MODELS

    def build(self, operations: Any, device: str, dtype: "torch.dtype | None" = None):
        """ComfyUI's model with the Linears of `operations`; weights are not set."""
        import torch
        from families.network import without_memory

        config = self.family.detect(without_memory(self.family.published_shapes, torch.bfloat16))
        config.unet_config.update(self.config)
        config.set_inference_dtype(dtype or torch.bfloat16, None)
        config.custom_operations = operations
        return config.get_model({}, "", device=device)

    def inputs(self, pixels: int, batch: int) -> dict[str, Any]:
        """Arguments of apply_model for images of so many pixels a side, or a video of options.frames latent frames."""
        from families.models import on_device
        from families.network import Sizes

        side = pixels // 8
        sizes = Sizes(batch, (side, side), self.options.frames, self.options.text)
        sizes.generator.manual_seed(sizes.seed)
        latent, given = self.family.inputs(self.config, sizes)
        call = {"x": latent, "t": sizes.number(self.family.sigma)} | given
        call["c_crossattn"] = call["c_crossattn"].bfloat16()
        return on_device(torch_device(self.options), call)

    def random_layer(self, draw: Draw, planned: "PlannedLayer", inputs: dict[str, Any]) -> "QuantizedLayer":
        """A planned layer of random weights.

        Args:
            inputs: group -> smoothing and proj_down that its layers share; filled as needed.
        """
        from svdquant_pack.svdq_core.layer import QuantizedLayer

        n, k, plan = planned.out_features, planned.in_features, planned.parts
        assert plan is not None
        bias = draw.normal(n, scale=0.02) if f"{planned.name}.bias" in self.tensors else None
        if plan.awq:
            return QuantizedLayer(k, n, (draw.awq(n, k),), bias)
        parts = tuple(draw.part(part.rows, part.columns, part.after_gelu) for part in plan.parts)
        alone = sum(layer.group == planned.group for layer in self.layers) == 1
        for part in parts:  # parts with the same columns have the smoothing of the first, as in every file that we have
            if part.columns == parts[0].columns:
                part.tensors["smooth_factor"] = parts[0]["smooth_factor"]
        if alone or len(parts) > 1:
            return QuantizedLayer(k, n, parts, bias)
        shared = inputs.setdefault(planned.group, {n: parts[0][n] for n in ("smooth_factor", "proj_down")})
        parts[0].tensors.update(shared)
        return QuantizedLayer(k, n, parts, bias, input=planned.group)
