"""Tensor descriptors made once for an address, and handed to Triton's launcher without its wrapper.

On Hopper a kernel gets a CUtensorMap for each of its descriptors. Triton wraps its launcher in a function that makes
all of them in Python whenever the kernel is launched. What the wrapper calls, and what it would hand on, are found in
it; a Triton in which they are not found is launched through its wrapper.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..ladder import logger


class Unwrapped(NamedTuple):
    """A launcher that takes what descriptors are made into.

    Args:
        run: called as CompiledKernel.run. make: (descriptor, metadata) -> values. metadata: of each descriptor.
    """

    run: Callable[..., None]
    make: Callable[[Any, Any], list]
    metadata: Sequence[Any]

    def maker(self, index: int, descriptor: Any) -> Callable[[], list]:
        """What makes the values of one descriptor, at the address that it has then."""
        make, metadata = self.make, self.metadata[index]
        return lambda: make(descriptor, metadata)


def unwrap(run: Any, count: int) -> Unwrapped | None:
    """The launcher of a compiled kernel without its wrapper; None where this Triton has another way.

    Args:
        run: CompiledKernel.run. count: how many descriptors the kernel takes.
    """
    wrapper = getattr(run, "launch", None)
    code = getattr(wrapper, "__code__", None)
    cells = getattr(wrapper, "__closure__", None) or ()
    if code is None or len(cells) != len(code.co_freevars):
        return None
    around = {name: cell.cell_contents for name, cell in zip(code.co_freevars, cells, strict=True)}
    launcher, metadata = around.get("launcher"), around.get("tensordesc_meta")
    make = wrapper.__globals__.get("make_tensordesc_arg")
    arguments = getattr(getattr(make, "__code__", None), "co_argcount", 0)
    # without metadata a descriptor is made into its tensor, whose address changes
    if not callable(launcher) or make is None or arguments != 2 or not metadata or None in metadata:
        logger.debug("Triton's launcher is used as it is")
        return None
    if len(metadata) != count:
        return None
    bare = copy.copy(run)
    bare.launch = launcher
    return Unwrapped(bare, make, metadata)
