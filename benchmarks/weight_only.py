"""4-bit weights as most people run them: unpacked to 16 bits in every call, then an ordinary matrix product.

GGUF Q4_0 the way ComfyUI packs do it, in torch operations; NF4 the way bitsandbytes does it, by one kernel that writes
the 16-bit weight. Contenders of benchmarks/step.py, on random codes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

Q4_0_BLOCK = 32  # weights that share one float16 scale: ggml's block_q4_0
NF4_BLOCK = 64  # weights that share one float32 maximum: bitsandbytes' default
PAIRS_OF_A_PROGRAM = 2048
# The 16 values of NF4, quantiles of a normal distribution scaled to -1 ... 1: QLoRA, arXiv:2305.14314, appendix E
NF4_VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


class Q4Linear(torch.nn.Module):
    """A Linear of GGUF Q4_0 weights: codes (N, K / 2) uint8, scales (N, K / 32) float16."""

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor | None):
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)

    def dense_weight(self, dtype: torch.dtype) -> Tensor:
        """(N, K): low nibbles are the first half of a block, high nibbles the second; 8 stands for zero."""
        rows = self.codes.shape[0]
        blocks = self.codes.view(rows, -1, 1, Q4_0_BLOCK // 2)
        shifts = torch.tensor([0, 4], dtype=torch.uint8, device=blocks.device).view(1, 1, 2, 1)
        signed = ((blocks >> shifts) & 15).to(torch.int8) - 8
        return (signed.reshape(rows, -1, Q4_0_BLOCK) * self.scales[..., None]).to(dtype).view(rows, -1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.dense_weight(x.dtype), self.bias)


class NF4Linear(torch.nn.Module):
    """NF4 weights: codes (N, K / 2) uint8, the first of two in the high nibble; maxima (N, K / 64) float32."""

    def __init__(self, codes: Tensor, maxima: Tensor, bias: Tensor | None):
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("maxima", maxima)
        self.register_buffer("values", torch.tensor(NF4_VALUES, device=codes.device))
        self.register_buffer("bias", bias)

    def dense_weight(self, dtype: torch.dtype) -> Tensor:
        rows, half = self.codes.shape
        if self.codes.device.type == "cpu":
            codes = torch.stack((self.codes >> 4, self.codes & 15), dim=-1).view(rows, -1, NF4_BLOCK)
            return (self.values[codes.long()] * self.maxima[..., None]).to(dtype).view(rows, -1)
        out = torch.empty(rows, 2 * half, dtype=dtype, device=self.codes.device)
        pairs = self.codes.numel()
        grid = (triton.cdiv(pairs, PAIRS_OF_A_PROGRAM),)
        arguments = self.codes, self.maxima, self.values, out, pairs, NF4_BLOCK, PAIRS_OF_A_PROGRAM
        _nf4_kernel[grid](*arguments)  # pyright: ignore[reportIndexIssue]
        return out

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.dense_weight(x.dtype), self.bias)


@triton.jit
def _nf4_kernel(
    codes_ptr,  # (pairs,) uint8
    maxima_ptr,  # (2 * pairs / BLOCK,) float32
    values_ptr,  # (16,) float32
    out_ptr,  # (2 * pairs,)
    pairs,
    BLOCK: tl.constexpr,  # noqa: N803  (as kernels have them)
    PAIRS: tl.constexpr,  # noqa: N803
):
    offsets = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    mask = offsets < pairs
    codes = tl.load(codes_ptr + offsets, mask=mask, other=0).to(tl.int32)
    maxima = tl.load(maxima_ptr + offsets * 2 // BLOCK, mask=mask, other=0.0)
    high = tl.load(values_ptr + (codes >> 4)) * maxima
    low = tl.load(values_ptr + (codes & 15)) * maxima
    places = offsets * 2
    tl.store(out_ptr + places, high.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(out_ptr + places + 1, low.to(out_ptr.dtype.element_ty), mask=mask)
