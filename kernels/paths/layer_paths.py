"""The paths of a layer, best first, and the run of a call on the first of them that works.

A path says in words why it cannot take a call; `auto` and the environment check pass that on. What fails while it runs
is left behind, as ladder.py says. Kernels are imported by the paths that use them, because a Triton may lack what a
kernel is written in.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from ..gpus import Generation, generation, why_no_triton
from ..ladder import attempts, is_elsewhere, say_once
from ..layer_call import COMPUTE_MODES, Int8Weight, LayerCall, QuantizedAct, label_of
from ..tiles import HOPPER_PART_N, fills_hopper
from .four_bit import Int8Codes, NativeFp4, NativeInt4
from .kitchen import Kitchen
from .measured_order import in_measured_order, measured_first, sizes_of
from .on_cpu import Reference
from .path import KernelPath, Path, readable_by, why_no_language
from .plain_torch import PlainTorch
from .sixteen_bit import FewTokens, SixteenBit

ALL_CALLS = frozenset((scheme, mode) for scheme in ("int4", "nvfp4", "int8") for mode in COMPUTE_MODES)
ALL_CALLS |= {("awq", "w4a16")}
INT8_CALLS = frozenset({("int4", "w4a8"), ("nvfp4", "w4a8"), ("int8", "w4a8"), ("int8", "w4a4")})


class Int8(KernelPath):
    """Int8 activations per token, weights brought to int8 per channel; those of an int8 layer are."""

    name, serves = "int8 tensor cores", INT8_CALLS

    def why_not_on(self, gpu: Generation) -> str | None:
        return gpu.slow_int8 if gpu.int8_rate == 0 and gpu.has_kernels else None

    def run(self, call: LayerCall) -> Tensor:
        from ..step.quantize_act_int8 import quantize_act_int8
        from ..step.requantize_weight import plan_requantization

        down, up = call.branch
        operands = call.x, call.tensors["smooth_factor"], down, call.act_unsigned, call.gelu
        if call.scheme == "int8":
            quantized = quantize_act_int8(*operands)
            weight = Int8Weight(call.tensors["qweight"], call.tensors["wscales"])
        else:  # in one launch, which multiply's is not
            plan = plan_requantization(call.tensors, call.scheme)
            quantized, weight = quantize_act_int8(*operands, weight=plan), plan.weight
        return self.gemm()(quantized, weight, up, call.bias, call.epilogue)

    def makes(self, call: LayerCall) -> str | None:
        return "int8 codes"

    def quantize(self, call: LayerCall) -> tuple[Tensor, ...]:
        from ..step.quantize_act_int8 import quantize_act_int8

        smooth_factor, down = call.tensors["smooth_factor"], call.branch.down
        return tuple(quantize_act_int8(call.x, smooth_factor, down, call.act_unsigned, call.gelu))

    def multiply(self, call: LayerCall, quantized: tuple[Tensor, ...]) -> Tensor:
        from ..step.requantize_weight import requantize_weight

        if call.scheme == "int8":
            weight = Int8Weight(call.tensors["qweight"], call.tensors["wscales"])
        else:
            weight = requantize_weight(call.tensors, call.scheme)
        return self.gemm()(QuantizedAct(*quantized), weight, call.branch.up, call.bias, call.epilogue)

    def gemm(self) -> Callable[..., Tensor]:
        from ..step.gemm_w4a8 import gemm_w4a8

        return gemm_w4a8


class Hopper(Int8):
    """Int8 for Hopper's tensor cores, which read shared memory while others fill it."""

    name = "Hopper's asynchronous tensor cores"

    def why_not_on(self, gpu: Generation) -> str | None:
        return why_no_language("gemm_w4a8_hopper") if gpu.wgmma else f"{gpu.name} has none"

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


class Int8ByTorch(Int8):
    """Int8 with torch's product: below Triton's, unless it was measured to be faster."""

    name = "torch's int8 product"

    def why_not_for(self, call: LayerCall) -> str | None:
        from ..step.gemm_w4a8_by_torch import LEAST_TOKENS, MULTIPLE

        (M, K), N = call.x.shape, call.out_features
        if M < LEAST_TOKENS:
            return f"{M} tokens are too few for it"
        return f"{K} inputs or {N} outputs are not multiples of {MULTIPLE}" if K % MULTIPLE or N % MULTIPLE else None

    def gemm(self) -> Callable[..., Tensor]:
        from ..step.gemm_w4a8_by_torch import gemm_w4a8_by_torch

        return gemm_w4a8_by_torch


class BelowKernels(PlainTorch):
    """What is left where kernels could be tried and all of them failed: w4a16 for 4-bit weights, whatever was asked.

    Its activations lose nothing, and it moves the fewest bytes: for a linear1 of FLUX.1, 4608 tokens, 2.6 GB where w4a4
    in plain torch moves 9.5 and w4a8 10.2.
    """

    serves = frozenset((scheme, mode) for scheme in ("int4", "nvfp4") for mode in ("w4a4", "w4a8"))

    def why_not_here(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if dtype == torch.float32 or why_no_triton(device) is not None:
            return "no kernel could be tried, so that the mode is as asked for"
        return super().why_not_here(device, dtype)

    def run(self, call: LayerCall) -> Tensor:
        return super().run(replace(call, mode="w4a16"))


NATIVE_INT4, NATIVE_FP4, PLAIN_TORCH, REFERENCE = NativeInt4(), NativeFp4(), PlainTorch(), Reference()
PLAIN_TORCH.serves = REFERENCE.serves = ALL_CALLS
PATHS: tuple[Path, ...] = (
    NATIVE_INT4,
    NATIVE_FP4,
    Int8Codes(),
    Hopper(),
    Int8(),
    Int8ByTorch(),
    FewTokens(),
    SixteenBit(),
    Kitchen(),
    BelowKernels(),
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


@cache
def _steps_here(
    scheme: str, mode: str, device: torch.device, _gpu: Generation, dtype: torch.dtype
) -> list[tuple[str, Path]]:
    """(its name in messages, path) of what the machine and a dtype of activations allow, best first.

    Args:
        _gpu: of the device; a key of the cache, because meta tensors stand for one GPU or another.
    """
    label, reasons, steps = label_of(scheme, mode), [], []
    for path in paths_for(scheme, mode):
        reason = path.why_not_here(device, dtype)
        if reason is None:
            mode_of_it = "w4a16" if isinstance(path, BelowKernels) else label
            steps.append((f"{mode_of_it} with {path.name}", path))
        elif isinstance(path, KernelPath):
            reasons.append(reason)
    if steps[0][1] is PLAIN_TORCH:
        say_once("%s runs in plain torch: %s.", label, reasons[0] if reasons else "no kernel is made for it")
    return steps


def run(call: LayerCall) -> Tensor:
    """The result of the first path that works: (M, N) of x.dtype, the epilogue's `out` if given.

    Raises:
        ValueError: there is no such scheme or mode.
    """
    x = call.x
    if x.shape[0] == 0:
        return x.new_empty((0, call.out_features)) if call.epilogue.out is None else call.epilogue.out
    if is_elsewhere(x.device):
        with torch.cuda.device(x.device):  # Triton launches on the current device
            return run(call)
    if call.wants_gradient:
        say_once("A gradient is asked for: layers run in plain torch with 16-bit activations (w4a16) where it passes.")
        path = REFERENCE if x.device.type == "cpu" else PLAIN_TORCH
        return path.run(replace(readable_by(path, call), mode="w4a16"))
    for attempt in attempts(x.device, _steps_for(call)):
        with attempt as path:
            return path.run(readable_by(path, call))
    raise AssertionError("the last path returns or raises")


def _steps_for(call: LayerCall) -> list[tuple[str, Path]]:
    """(its name in messages, path) of the paths that can take a call, best first: by the table, or by measuring."""
    device = call.x.device
    steps = _steps_here(call.scheme, call.mode, device, generation(device), call.x.dtype)
    return in_measured_order([step for step in steps if step[1].why_not_for(call) is None], call)


def first_path(call: LayerCall) -> Path:
    """The path that `run` would try first now."""
    return next(attempts(call.x.device, _steps_for(call))).step


def keeps_fragments(scheme: str, tensors: Mapping[str, Tensor], act_unsigned: bool, device: torch.device) -> bool:
    """Whether a part's codes had better lie in fragments where w4a4 runs it on a device: its first path reads them."""
    if scheme != "int4" or NATIVE_INT4.why_not_here(device, torch.bfloat16) is not None:
        return False
    if NATIVE_INT4.why_not_for_tensors(tensors) is not None:
        return False
    return measured_first(device, sizes_of(scheme, tensors, act_unsigned), "w4a4") in (None, NATIVE_INT4.name)


def describe_paths(scheme: str, mode: str, gpu: Generation) -> list[tuple[str, str | None]]:
    """(name, why not) of each path through kernels that a mode has, best first; None: it runs on such a GPU."""
    paths = [path for path in paths_for(scheme, mode) if isinstance(path, KernelPath)]
    return [(path.name, path.why_not_on(gpu)) for path in paths]


def why_not_native(scheme: str, gpu: Generation) -> tuple[str, str | None]:
    """(name, why not) of the path that multiplies a scheme's codes as they are on both sides."""
    path = NATIVE_INT4 if scheme == "int4" else NATIVE_FP4
    return path.name, path.why_not_on(gpu)
