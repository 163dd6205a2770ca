"""One call of a quantized layer part: everything that its arithmetic depends on, made once and handed to every path.

Compute modes: w4a4 is the paper, code for code (NVFP4 files: FP4 codes on both sides); w4a8 quantizes activations to
int8 per token and brings the 4-bit weights to one scale for each output channel; w4a16 leaves activations alone. Int8
layers have one scale for each output channel already: w4a4 and w4a8 both mean w8a8 for them. AWQ layers, FLUX's
modulation, know w4a16 only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .epilogue import NOTHING_MORE, Epilogue
from .step.fragments import are_fragments

COMPUTE_MODES = ("w4a4", "w4a8", "w4a16")


class Factors(NamedTuple):
    """A low-rank branch: x @ down @ up.T is added to the layer's result; down (K, R), up (N, R), R may be 0."""

    down: Tensor
    up: Tensor


class QuantizedAct(NamedTuple):
    """Activations in int8: codes (M, K), ascales (M,) float32, and x_down (M, R), their low-rank projection."""

    codes: Tensor
    ascales: Tensor
    x_down: Tensor


class Int8Weight(NamedTuple):
    """A weight in int8: codes (N, K), channel_scales (N,) float32."""

    codes: Tensor
    channel_scales: Tensor


def label_of(scheme: str, mode: str) -> str:
    """The arithmetic of a scheme in a mode, as the user knows it."""
    if scheme == "awq":
        return "awq"
    return "w8a8" if scheme == "int8" and mode != "w4a16" else mode


@dataclass(frozen=True, slots=True)
class LayerCall:
    """A quantized part applied to activations.

    Args:
        x: (M, K) float32, bfloat16 or float16, unit stride along K; rows may be apart.
        tensors: those of format.py, qweight perhaps in fragments (step/fragments.py); the low-rank branch is taken from
            `factors`.
        scheme: "int4", "nvfp4", "int8" or "awq".
        mode: one of COMPUTE_MODES.
        factors: the part's own and those of its LoRAs, strength included; None: an awq part without any.
        bias: (N,) or None.
        act_unsigned: the stored bias expects the GELU shift; int4 activation codes are 0...15.
        gelu: apply GELU (tanh) to x first.
        epilogue: what is done with the result; see Epilogue.
    """

    x: Tensor
    tensors: Mapping[str, Tensor]
    scheme: str
    mode: str
    factors: Factors | None
    bias: Tensor | None = None
    act_unsigned: bool = False
    gelu: bool = False
    epilogue: Epilogue = NOTHING_MORE

    @property
    def wants_gradient(self) -> bool:
        """Whether autograd follows what the call reads; no kernel tells it how."""
        read = (self.x, self.bias, *(self.factors or ()))
        return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in read)

    @property
    def label(self) -> str:
        return label_of(self.scheme, self.mode)

    @property
    def out_features(self) -> int:
        qweight = self.tensors["qweight"]
        return qweight.shape[1] * 16 if are_fragments(qweight) else qweight.shape[0]

    @property
    def branch(self) -> Factors:
        """The low-rank branch of a scheme that always has one."""
        assert self.factors is not None, f"an {self.scheme} part has a low-rank branch, if one of rank 0"
        return self.factors
