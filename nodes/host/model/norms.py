"""The host's norms, computed by kernels on GPUs: torch's take a tenth of a FLUX.1 step (DECISIONS 56).

Weights are cast and paged in as the host does it. With weights of its own a layer norm is left to the host: neither
FLUX nor PixArt has any.
"""

import comfy.ops
from torch import Tensor

from ....svdq_core.row_ops import layer_norm, rms_norm


class KernelRMSNorm(comfy.ops.manual_cast.RMSNorm):
    """RMSNorm of FLUX's queries and keys."""

    def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
        if self.weight is None or len(self.normalized_shape) != 1:
            return super().forward_comfy_cast_weights(input)
        weight, bias, stream = comfy.ops.cast_bias_weight(self, input, offloadable=True)
        try:
            return rms_norm(input, weight, self.eps)
        finally:
            comfy.ops.uncast_bias_weight(self, weight, bias, stream)


class KernelLayerNorm(comfy.ops.manual_cast.LayerNorm):
    """LayerNorm in front of a modulation."""

    def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
        if self.weight is not None or self.normalized_shape != tuple(input.shape[-1:]):
            return super().forward_comfy_cast_weights(input)
        return layer_norm(input, self.eps)
