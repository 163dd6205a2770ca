"""Paths that multiply exact 4-bit codes on both sides: w4a4."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..epilogue import settle
from ..format import GROUP_SIZE_INT4
from ..gpus import Generation
from ..layer_call import LayerCall
from ..tiles import NATIVE_INT4_ROWS, NVFP4_ROWS, native_int4_tile
from .path import KernelPath, outer_scales, why_no_language, why_too_old


class NativeInt4(KernelPath):
    """Exact w4a4 by the INT4 products of Ampere and Ada."""

    name, serves = "INT4 tensor cores", frozenset({("int4", "w4a4")})
    reads_fragments = True

    def why_not_on(self, gpu: Generation) -> str | None:
        return why_no_language("gemm_w4a4_native") if gpu.int4 else f"{gpu.name} has none"

    def why_not_for(self, call: LayerCall) -> str | None:
        return self.why_not_for_tensors(call.tensors)

    def why_not_for_tensors(self, tensors: Mapping[str, Tensor]) -> str | None:
        """why_not_for, which a part's own tensors decide."""
        wscales = tensors["wscales"]
        if wscales.shape[1] % 64:
            return f"{wscales.shape[1]} outputs are not a multiple of 64"
        return "its weight scales are float32" if wscales.dtype == torch.float32 else None

    def makes(self, call: LayerCall) -> str | None:
        return "int4 codes in fragments, padded rows"

    def quantize(self, call: LayerCall) -> tuple[Tensor, ...]:
        from ..step.quantize_act import quantize_act

        operands = call.x, call.tensors["smooth_factor"], call.branch.down, "int4"
        qx, ascales, x_down = quantize_act(
            *operands,
            output="fragments",
            act_unsigned=call.act_unsigned,
            gelu=call.gelu,
            pad_rows=NATIVE_INT4_ROWS,
        )
        assert ascales is not None, "packed codes have scales"
        return qx, ascales, x_down

    def multiply(self, call: LayerCall, quantized: tuple[Tensor, ...]) -> Tensor:
        from ..self_check import require_int4
        from ..step.gemm_w4a4_native import gemm_w4a4_native

        (M, K), N = call.x.shape, call.out_features
        block_n = native_int4_tile(M, N, K // GROUP_SIZE_INT4)["BLOCK_N"]
        require_int4(call.x.device, call.x.dtype, block_n, call.act_unsigned)
        qx, ascales, x_down = quantized
        operands = qx, ascales, call.tensors["qweight"], call.tensors["wscales"]
        out = gemm_w4a4_native(
            *operands, x_down=x_down, proj_up=call.branch.up, bias=call.bias, act_unsigned=call.act_unsigned
        )
        return settle(out, call.epilogue)


class Int8Codes(KernelPath):
    """Exact w4a4 with 4-bit codes as int8: scaled after each group of 64 k.

    That costs more than 16-bit products where int8 ones are not at least four times as fast. H200, 3072 -> 12288,
    M = 4608: int8 0.99 ms at best, 16-bit 0.54 ms with both sides dequantized first.
    """

    name, serves = "int8 tensor cores", frozenset({("int4", "w4a4")})

    def why_not_on(self, gpu: Generation) -> str | None:
        return None if gpu.int8_rate >= 4 else f"on {gpu.name} 16-bit products are faster for exact 4-bit codes"

    def makes(self, call: LayerCall) -> str | None:
        return "int4 codes in bytes"

    def quantize(self, call: LayerCall) -> tuple[Tensor, ...]:
        from ..step.quantize_act import quantize_act

        operands = call.x, call.tensors["smooth_factor"], call.branch.down, "int4"
        qx, ascales, x_down = quantize_act(*operands, output="int8", act_unsigned=call.act_unsigned, gelu=call.gelu)
        assert ascales is not None, "codes have scales"
        return qx, ascales, x_down

    def multiply(self, call: LayerCall, quantized: tuple[Tensor, ...]) -> Tensor:
        from ..step.gemm_w4a4 import gemm_w4a4
        from ..step.unpack_weight import expand_codes

        qx, ascales, x_down = quantized
        codes = expand_codes(call.tensors["qweight"])
        out = gemm_w4a4(
            qx, ascales, codes, call.tensors["wscales"], x_down=x_down, proj_up=call.branch.up, bias=call.bias
        )
        return settle(out, call.epilogue)


class NativeFp4(KernelPath):
    """Exact w4a4 by the FP4 products of Blackwell."""

    name, serves = "FP4 tensor cores", frozenset({("nvfp4", "w4a4")})

    def why_not_on(self, gpu: Generation) -> str | None:
        if not gpu.fp4:
            return f"{gpu.name} has none"
        return why_no_language("gemm_nvfp4") or why_too_old(gpu.fp4_triton, f"FP4 products for {gpu.name}")

    def makes(self, call: LayerCall) -> str | None:
        return "packed nvfp4 codes, padded rows"

    def quantize(self, call: LayerCall) -> tuple[Tensor, ...]:
        from ..step.quantize_act import quantize_act

        operands = call.x, call.tensors["smooth_factor"], call.branch.down, "nvfp4"
        qx, ascales, x_down = quantize_act(*operands, gelu=call.gelu, pad_rows=NVFP4_ROWS)
        assert ascales is not None, "packed codes have scales"
        return qx, ascales, x_down

    def multiply(self, call: LayerCall, quantized: tuple[Tensor, ...]) -> Tensor:
        from ..self_check import require_fp4
        from ..step.gemm_nvfp4 import gemm_nvfp4

        require_fp4(call.x.device, call.x.dtype)
        qx, ascales, x_down = quantized
        operands = qx, ascales, call.tensors["qweight"], call.tensors["wscales"]
        out = gemm_nvfp4(*operands, x_down=x_down, proj_up=call.branch.up, bias=call.bias, **outer_scales(call))
        return settle(out, call.epilogue)
