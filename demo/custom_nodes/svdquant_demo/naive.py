"""A model of naively rounded weights and activations, in 16-bit arithmetic: what a low number of bits does by itself.

The layers that SVDQuant quantizes get symmetric codes for groups of 64, the nearest ones, scaled by the largest value
of the group: weights once, activations in every call. Modulation layers get 4-bit weights between the smallest and the
largest value of a group and keep their activations, as in SVDQuant files.
"""

import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

GROUP = 64
MODULATION_BITS = 4
BLOCKS = ("double_blocks.", "single_blocks.")
MODULATION = ("_mod.lin", "modulation.lin")


def round_symmetric(values: Tensor, bits: int) -> Tensor:
    """The nearest multiples of largest / (2^(bits - 1) - 1) in each group of 64 along the last dimension."""
    top = 2 ** (bits - 1) - 1
    groups = values.float().unflatten(-1, (-1, GROUP))
    scale = groups.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / top
    return ((groups / scale).round() * scale).flatten(-2).to(values.dtype)


def round_between(values: Tensor, bits: int) -> Tensor:
    """The nearest of 2^bits values between smallest and largest of each group of 64 along the last dimension."""
    groups = values.float().unflatten(-1, (-1, GROUP))
    low, high = groups.amin(dim=-1, keepdim=True), groups.amax(dim=-1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    return (((groups - low) / step).round() * step + low).flatten(-2).to(values.dtype)


def round_weights(tensors: dict[str, Tensor], bits: int) -> dict[str, Tensor]:
    """The tensors of a model file, with the weights of its blocks' Linears rounded."""

    def rounded(name: str, tensor: Tensor) -> Tensor:
        if not name.startswith(BLOCKS) or not name.endswith(".weight") or tensor.ndim != 2:
            return tensor
        is_modulation = name.removesuffix(".weight").endswith(MODULATION)
        return round_between(tensor, MODULATION_BITS) if is_modulation else round_symmetric(tensor, bits)

    return {name: rounded(name, tensor) for name, tensor in tensors.items()}


class DemoNaiveLoader(io.ComfyNode):
    """Loads a BF16 model with its weights rounded, and rounds activations while it runs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DemoNaiveLoader",
            display_name="Load Naively Rounded Model (SVDQuant demo)",
            category="svdquant/demo",
            description="Rounds weights and activations of a FLUX to few bits, the nearest value, nothing else. For "
            "comparison; it saves no memory.",
            inputs=[
                io.Combo.Input("model_name", options=folder_paths.get_filename_list("diffusion_models")),
                io.Int.Input("bits", default=4, min=2, max=8, tooltip="Of weights and of activations."),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model_name: str, bits: int) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("diffusion_models", model_name)
        model = comfy.sd.load_diffusion_model_state_dict(round_weights(comfy.utils.load_torch_file(path), bits))
        for name, module in model.model.diffusion_model.named_modules():
            if isinstance(module, torch.nn.Linear) and name.startswith(BLOCKS) and not name.endswith(MODULATION):
                module.register_forward_pre_hook(lambda _, inputs: (round_symmetric(inputs[0], bits), *inputs[1:]))
        return io.NodeOutput(model)
