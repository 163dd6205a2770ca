"""The paths of a layer, best first, and the run of a call on the first of them that works.

A path says in words why it cannot take a call; `auto` and the environment check pass that on. What fails while it runs
is left behind, as ladder.py says. Kernels are imported by the paths that use them, because a Triton may lack what a
kernel is written in.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

from ..epilogue import settle
from ..gpus import Generation, generation
from ..ladder import attempts, is_elsewhere, say_once
from ..layer_call import COMPUTE_MODES, Int8Weight, LayerCall
from ..tiles import GEMV_ROWS, HOPPER_PART_N, NATIVE_INT4_ROWS, fills_hopper
from .on_cpu import Reference
from .path import KernelPath, Path
from .plain_torch import PlainTorch

ALL_CALLS = frozenset((scheme, mode) for scheme in ("int4", "nvfp4", "int8") for mode in COMPUTE_MODES)
ALL_CALLS |= {("awq", "w4a16")}
INT8_CALLS = frozenset({("int4", "w4a8"), ("nvfp4", "w4a8"), ("int8", "w4a8"), ("int8", "w4a4")})


@cache
def _why_no_language(kernel: str) -> str | None:
    """Why a kernel of step/ cannot be imported with the Triton that is installed; None if it can."""
    try:
        import_module(f"..step.{kernel}", __package__)
    except ImportError as error:
        return f"this Triton lacks the language of the kernel ({error}); newer ones have it"
    return None


def _extra(call: LayerCall) -> dict[str, Tensor | None]:
    return {name: call.tensors.get(name) for name in ("wtscale", "wcscales")}


def _project_down(x: Tensor, proj_down: Tensor) -> Tensor:
    out = torch.empty((x.shape[0], proj_down.shape[1]), dtype=x.dtype, device=x.device)
    return torch.mm(x.detach(), proj_down.detach().to(x.dtype), out=out)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias. Here as above with `out`, so that recording.py can note it, and therefore detached."""
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
    if bias is None:
        return torch.mm(x.detach(), weight.T, out=out)
    return torch.addmm(bias.detach().to(x.dtype), x.detach(), weight.T, out=out)


class NativeInt4(KernelPath):
    """Exact w4a4 by the INT4 products of Ampere and Ada."""

    name, serves = "INT4 tensor cores", frozenset({("int4", "w4a4")})

    def why_not_on(self, gpu: Generation) -> str | None:
        return _why_no_language("gemm_w4a4_native") if gpu.int4 else f"{gpu.name} has none"

    def why_not_for(self, call: LayerCall) -> str | None:
        if call.out_features % 64:
            return f"{call.out_features} outputs are not a multiple of 64"
        return "its weight scales are float32" if call.tensors["wscales"].dtype == torch.float32 else None

    def run(self, call: LayerCall) -> Tensor:
        from ..self_check import require_int4
        from ..step.gemm_w4a4_native import gemm_w4a4_native
        from ..step.quantize_act import quantize_act

        require_int4(call.x.device)
        operands = call.x, call.tensors["smooth_factor"], call.branch.down, "int4", "packed"
        qx, ascales, x_down = quantize_act(*operands, call.act_unsigned, call.gelu, pad_rows=NATIVE_INT4_ROWS)
        weight = call.tensors["qweight"], call.tensors["wscales"]
        out = gemm_w4a4_native(qx, ascales, *weight, x_down, call.branch.up, call.bias, call.act_unsigned)
        return settle(out, call.epilogue)


class Int8Codes(KernelPath):
    """Exact w4a4 with 4-bit codes as int8: scaled after each group of 64 k.

    That costs more than 16-bit products where int8 ones are not at least four times as fast. H200, 3072 -> 12288,
    M = 4608: int8 0.99 ms at best, 16-bit 0.54 ms with both sides dequantized first.
    """

    name, serves = "int8 tensor cores", frozenset({("int4", "w4a4")})

    def why_not_on(self, gpu: Generation) -> str | None:
        return None if gpu.int8_rate >= 4 else f"on {gpu.name} 16-bit products are faster for exact 4-bit codes"

    def run(self, call: LayerCall) -> Tensor:
        from ..step.gemm_w4a4 import gemm_w4a4
        from ..step.quantize_act import quantize_act
        from ..step.unpack_weight import expand_codes

        operands = call.x, call.tensors["smooth_factor"], call.branch.down, "int4", "int8"
        qx, ascales, x_down = quantize_act(*operands, call.act_unsigned, call.gelu)
        codes = expand_codes(call.tensors["qweight"])
        out = gemm_w4a4(qx, ascales, codes, call.tensors["wscales"], x_down, call.branch.up, call.bias)
        return settle(out, call.epilogue)


class NativeFp4(KernelPath):
    """Exact w4a4 by the FP4 products of Blackwell."""

    name, serves = "FP4 tensor cores", frozenset({("nvfp4", "w4a4")})

    def why_not_on(self, gpu: Generation) -> str | None:
        return _why_no_language("gemm_nvfp4") if gpu.fp4 else f"{gpu.name} has none"

    def run(self, call: LayerCall) -> Tensor:
        from ..self_check import require_fp4
        from ..step.gemm_nvfp4 import gemm_nvfp4
        from ..step.quantize_act import quantize_act

        require_fp4(call.x.device)
        operands = call.x, call.tensors["smooth_factor"], call.branch.down, "nvfp4", "packed"
        qx, ascales, x_down = quantize_act(*operands, False, call.gelu)
        weight = call.tensors["qweight"], call.tensors["wscales"]
        out = gemm_nvfp4(qx, ascales, *weight, x_down, call.branch.up, call.bias, **_extra(call))
        return settle(out, call.epilogue)


class Int8(KernelPath):
    """Int8 activations per token, weights brought to int8 per channel; those of an int8 layer are."""

    name, serves = "int8 tensor cores", INT8_CALLS

    def why_not_on(self, gpu: Generation) -> str | None:
        return gpu.slow_int8 if gpu.int8_rate == 0 and gpu.has_kernels else None

    def run(self, call: LayerCall) -> Tensor:
        from ..step.quantize_act_int8 import quantize_act_int8
        from ..step.requantize_weight import plan_requantization

        operands = call.x, call.tensors["smooth_factor"], call.branch.down, call.act_unsigned, call.gelu
        if call.scheme == "int8":
            quantized = quantize_act_int8(*operands)
            weight = Int8Weight(call.tensors["qweight"], call.tensors["wscales"])
        else:
            plan = plan_requantization(call.tensors, call.scheme)
            quantized, weight = quantize_act_int8(*operands, weight=plan), plan.weight
        return self.gemm()(quantized, weight, call.branch.up, call.bias, call.epilogue)

    def gemm(self) -> Callable[..., Tensor]:
        from ..step.gemm_w4a8 import gemm_w4a8

        return gemm_w4a8


class Hopper(Int8):
    """Int8 for Hopper's tensor cores, which read shared memory while others fill it."""

    name = "Hopper's asynchronous tensor cores"

    def why_not_on(self, gpu: Generation) -> str | None:
        return _why_no_language("gemm_w4a8_hopper") if gpu.wgmma else f"{gpu.name} has none"

    def why_not_for(self, call: LayerCall) -> str | None:
        out, (N, R) = call.epilogue.out, call.branch.up.shape
        if not fills_hopper(call.x.shape[0], N):
            return f"{call.x.shape[0]} tokens and {N} outputs are too few tiles for it"
        if N % 8 or R % 8 or (out is not None and (out.data_ptr() | 2 * out.stride(0)) % 16):
            return "its copies want rows of whole 16 bytes"
        return "a GELU begins inside a tile" if (call.epilogue.gelu_from or 0) % HOPPER_PART_N else None

    def gemm(self) -> Callable[..., Tensor]:
        from ..step.gemm_w4a8_hopper import gemm_w4a8_hopper

        return gemm_w4a8_hopper


class FewTokens(KernelPath):
    """4-bit weights times a few rows of 16-bit activations."""

    name, serves = "a pass over the weight", frozenset({("int4", "w4a16"), ("nvfp4", "w4a16"), ("awq", "w4a16")})

    def why_not_for(self, call: LayerCall) -> str | None:
        return None if call.x.shape[0] <= GEMV_ROWS else f"{call.x.shape[0]} tokens are more than {GEMV_ROWS}"

    def run(self, call: LayerCall) -> Tensor:
        from ..step.gemv_w4a16 import gemv_w4a16

        x = F.gelu(call.x.float(), approximate="tanh").to(call.x.dtype) if call.gelu else call.x
        branch, smoothing = {}, {}
        if call.factors is not None and call.factors.down.shape[1]:
            branch = {"x_down": _project_down(x, call.factors.down), "proj_up": call.factors.up.contiguous()}
        if call.scheme != "awq":
            smoothing = {"smooth_factor": call.tensors["smooth_factor"], "act_unsigned": call.act_unsigned}
        weight = call.tensors["qweight"], call.tensors["wscales"], call.scheme, call.bias, call.tensors.get("wzeros")
        return settle(gemv_w4a16(x, *weight, **smoothing, **branch, **_extra(call)), call.epilogue)


class SixteenBit(KernelPath):
    """Both sides as 16-bit values with the low-rank factors behind them: one matrix product is the whole layer."""

    name = "16-bit tensor cores"
    serves = frozenset((scheme, mode) for scheme in ("int4", "nvfp4") for mode in ("w4a4", "w4a16"))
    serves |= {("awq", "w4a16")}

    def run(self, call: LayerCall) -> Tensor:
        from ..step.quantize_act import quantize_act
        from ..step.unpack_weight import dequantize_weight

        x, packed = call.x, (call.tensors["qweight"], call.tensors["wscales"], call.scheme, call.x.dtype)
        if call.scheme == "awq":
            out = _product(x, dequantize_weight(*packed, wzeros=call.tensors["wzeros"]), call.bias)
            if call.factors is not None:
                x_down, up = _project_down(x, call.factors.down), call.factors.up.contiguous().detach().to(x.dtype)
                torch.addmm(out, x_down, up.T, out=out)
            return settle(out, call.epilogue)
        codes = call.scheme if call.mode == "w4a4" else "none"
        operands = x, call.tensors["smooth_factor"], call.branch.down, codes, "float"
        x_hat, _, _ = quantize_act(*operands, call.act_unsigned, call.gelu)
        weight = dequantize_weight(*packed, call.branch.up, **_extra(call))
        return settle(_product(x_hat, weight, call.bias), call.epilogue)


NATIVE_INT4, NATIVE_FP4, PLAIN_TORCH, REFERENCE = NativeInt4(), NativeFp4(), PlainTorch(), Reference()
PLAIN_TORCH.serves = REFERENCE.serves = ALL_CALLS
PATHS: tuple[Path, ...] = (
    NATIVE_INT4,
    NATIVE_FP4,
    Int8Codes(),
    Hopper(),
    Int8(),
    FewTokens(),
    SixteenBit(),
    PLAIN_TORCH,
    REFERENCE,
)


@cache
def paths_for(scheme: str, mode: str) -> tuple[Path, ...]:
    """The paths that a scheme's calls of a mode may take, best first.

    Raises:
        ValueError: there is no such scheme or mode.
    """
    found = tuple(path for path in PATHS if (scheme, mode) in path.serves)
    if not found:
        modes = ", ".join(mode for mode in COMPUTE_MODES if (scheme, mode) in ALL_CALLS)
        raise ValueError(f"compute mode {mode!r} of {scheme!r} weights: expected one of {modes or 'no mode at all'}.")
    return found


def run(call: LayerCall) -> Tensor:
    """The result of the first path that works: (M, N) of x.dtype, the epilogue's `out` if given.

    Raises:
        ValueError: there is no such scheme or mode.
    """
    x, usable = call.x, []
    if x.shape[0] == 0:
        return x.new_empty((0, call.out_features)) if call.epilogue.out is None else call.epilogue.out
    if is_elsewhere(x.device):
        with torch.cuda.device(x.device):  # Triton launches on the current device
            return run(call)
    reason = "no kernel is made for it"
    for path in paths_for(call.scheme, call.mode):
        problem = path.can_run(call)
        if problem is None:
            usable.append((f"{call.label} with {path.name}", path))
        elif not usable and isinstance(path, KernelPath):
            reason = problem
    if usable[0][1] is PLAIN_TORCH:
        say_once("%s runs in plain torch: %s.", call.label, reason)
    for attempt in attempts(x.device, usable):
        with attempt as path:
            return path.run(call)
    raise AssertionError("the last path returns or raises")


def describe_paths(scheme: str, mode: str, gpu: Generation) -> list[tuple[str, str | None]]:
    """(name, why not) of each path through kernels that a mode has, best first; None: it runs on such a GPU."""
    paths = [path for path in paths_for(scheme, mode) if isinstance(path, KernelPath)]
    return [(path.name, path.why_not_on(gpu)) for path in paths]


def why_not_native(scheme: str, device: torch.device) -> tuple[str, str | None]:
    """(name, why not) of the path that multiplies a scheme's codes as they are on both sides."""
    path = NATIVE_INT4 if scheme == "int4" else NATIVE_FP4
    return path.name, path.why_not_on(generation(device))
