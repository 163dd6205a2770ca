"""Launching a compiled kernel again without Triton's search for it.

A layer launches three or four kernels of some tens of microseconds; Triton's search by twenty arguments costs as much
time on the CPU. Here a launch is found by what decides which compiled kernel it needs: dtypes of tensors, constants,
and of sizes whether they are 1, multiples of 16 or beyond 32 bits. So there are as many entries as compiled kernels,
however many sizes come by. Anything unusual goes the ordinary way.
"""

from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from ..gpus import generation
from ..stand_in import meant
from .ahead import wait_for
from .dry_run import Wanted, dry_run
from .recording import note_launch
from .replay import ALIGNMENT

_compiled: dict[tuple, Any] = {}
_unspecialized: dict[int, frozenset[int]] = {}  # by id: a kernel's own hash is slow, and kernels live for ever
MAX_INT_32 = 2**31 - 1
_refused: list[str] = []  # what this Triton said when its compiled kernels could not be launched like this


def launch_key(kernel: Any, arguments: tuple, constants: dict[str, Any]) -> tuple | None:
    """What decides which compiled kernel a launch needs; None for a launch to leave to Triton."""
    identity = id(kernel)
    unspecialized = _unspecialized.get(identity)
    if unspecialized is None:
        names = kernel.do_not_specialize
        unspecialized = frozenset(i for i, name in enumerate(kernel.arg_names) if name in names)
        _unspecialized[identity] = unspecialized
    key: list[Any] = [identity]
    device = None
    for i, argument in enumerate(arguments):
        if type(argument) is int:
            large = argument > MAX_INT_32
            key.append(large if i in unspecialized else (large, argument == 1, argument % ALIGNMENT == 0))
        elif argument is None:
            key.append(None)
        elif isinstance(argument, Tensor):
            if argument.data_ptr() % ALIGNMENT:
                return None
            key.append(argument.dtype)
            if _compiles_for_sizes():
                key.append(argument.untyped_storage().nbytes() > MAX_INT_32)
            device = argument.device
        else:  # a tensor descriptor
            key.append(argument.base.dtype)
            key.append(tuple(argument.block_shape))
            device = argument.base.device
    key.append(device if device is None else meant(device))
    key.extend(constants.values())
    return tuple(key)


def _compiles_for_sizes() -> bool:
    """Whether Triton compiles for the size of a tensor's memory: on AMD GPUs, where up to 2 GiB have shorter code."""
    return torch.version.hip is not None


def overlaps_launches(device: torch.device) -> bool:
    """Whether a kernel launched with launch_pdl begins while the one before it runs, and can wait for it."""
    return generation(device).overlaps_launches and _can_overlap()


@cache
def _can_overlap() -> bool:
    from triton.backends.nvidia.compiler import CUDAOptions

    return hasattr(CUDAOptions, "launch_pdl")  # since Triton 3.4


def launch(kernel: Any, grid: tuple[int, ...], arguments: tuple, constants: dict[str, Any]) -> None:
    """kernel[grid](*arguments, **constants).

    Args:
        kernel: a triton.jit or gluon.jit function.
        grid: up to three sizes.
        arguments: what is not constexpr, in the order of the signature.
        constants: every constexpr, in the order of the signature, and options such as num_warps.
    """
    if dry_run.found is not None:
        key = launch_key(kernel, arguments, constants)
        if key is not None:
            dry_run.found.setdefault(key, Wanted(kernel, arguments, constants))
        return
    names = kernel.arg_names[len(arguments) :] if isinstance(kernel, triton.JITFunction) else None
    key = None if _refused or names is None else launch_key(kernel, arguments, constants)
    if names is None or key is None:
        note_launch(None, (), (), ())
        kernel[grid](*arguments, **constants)
        return
    compiled, grid = _compiled.get(key), (*grid, 1, 1)[:3]
    if compiled is None:
        wait_for(key)
        compiled = _compiled[key] = kernel[grid](*arguments, **constants)
        note_launch(compiled, grid, arguments, tuple(constants[name] for name in names))
        return
    values = tuple(constants[name] for name in names)
    # addresses, not tensors: asked about those, the driver does not know memory of a CUDA graph that is being captured
    placed = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    try:
        compiled[grid](*placed, *values)
    except TypeError as error:
        _refused.append(str(error))
        kernel[grid](*arguments, **constants)
    note_launch(compiled, grid, arguments, values)
