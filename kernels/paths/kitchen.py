"""The w4a4 operation of comfy-kitchen, which ComfyUI brings along, on the layer's own tensors.

Its natural layout is the one of format.py, so that nothing is copied. ComfyUI registers the operation when it starts;
here it is found by name and never imported. Its kernels for NVIDIA GPUs multiply INT4 codes; elsewhere, and where
ComfyUI has switched them off, the same operation runs in plain torch, which only a clock can tell apart.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..epilogue import settle
from ..format import GELU_SHIFT, GROUP_SIZE_INT4, RANK_MULTIPLE
from ..layer_call import LayerCall
from .path import Path

OPERATIONS = ("quantize_svdquant_w4a4", "scaled_mm_svdquant_w4a4")
PADDED_ROWS = 256  # its products take whole tiles of tokens
TILE_N = 128


class Kitchen(Path):
    """Exact w4a4 by comfy-kitchen. It keeps its codes in memory of its own, so calls cannot share them."""

    name, serves = "comfy-kitchen's INT4 products", frozenset({("int4", "w4a4")})

    def why_not_here(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cuda":
            return "it is for GPUs"
        if dtype == torch.float32:
            return "float32 activations have no kernel"
        if not all(hasattr(torch.ops.comfy_kitchen, name) for name in OPERATIONS):
            return "there is no comfy-kitchen with svdquant_w4a4 in this process"
        return None

    def why_not_for(self, call: LayerCall) -> str | None:
        R, N = call.branch.down.shape[1], call.out_features
        if R == 0 or R % RANK_MULTIPLE:
            return f"a low-rank branch of rank {R} is no multiple of {RANK_MULTIPLE}"
        return f"{N} outputs are not a multiple of {TILE_N}" if N % TILE_N else None

    def run(self, call: LayerCall) -> Tensor:
        x, dtype = call.x, call.x.dtype
        x = F.gelu(x.float(), approximate="tanh").to(dtype) if call.gelu else x.contiguous()
        shifted = x + GELU_SHIFT if call.act_unsigned else x
        smooth_factor, down = call.tensors["smooth_factor"].to(dtype), call.branch.down.to(dtype).contiguous()
        codes, ascales, x_down = torch.ops.comfy_kitchen.quantize_svdquant_w4a4(
            shifted, smooth_factor, down, PADDED_ROWS, call.act_unsigned, x
        )
        wscales, up = call.tensors["wscales"].to(dtype), call.branch.up.to(dtype).contiguous()
        assert wscales.shape[0] * GROUP_SIZE_INT4 == x.shape[1], "its groups are those of format.py"
        bias = None if call.bias is None else call.bias.to(dtype)
        out = torch.ops.comfy_kitchen.scaled_mm_svdquant_w4a4(
            codes, call.tensors["qweight"], ascales, wscales, x_down, up, bias, call.act_unsigned
        )
        return settle(out[: x.shape[0]], call.epilogue)
