"""Which inputs get a Hessian, when not all of them fit into memory.

The narrowest first: they cost least, and are the most. Where not all of one width fit, every n-th of the model does.
FLUX.1: all of width 3072 take 6.8 GiB, all others another 42 GiB. PixArt: 0.7 and 2.2 GiB.
"""

from collections.abc import Mapping

from ..errors import ArchitectureError
from ..models import Architecture
from .whole_model import plan_for


def choose_hessians(
    architecture: Architecture, shapes: Mapping[str, tuple[int, int]], budget: int
) -> dict[str, tuple[tuple[int, int], ...]]:
    """Host module name -> ranges of channels, for a Collector.

    Args:
        shapes: host module name -> (out_features, in_features) of each Linear of the blocks.
        budget: bytes of main memory for the matrices.
    """
    candidates: dict[int, list[tuple[str, tuple[int, int]]]] = {}
    for name, linear in architecture.linears(architecture.count_blocks([f"{n}.weight" for n in shapes], "host")):
        if name not in shapes:
            continue
        plan = plan_for(linear, *shapes[name])
        try:
            plan.check(*shapes[name], name)
        except ArchitectureError:  # stays in 16 bits
            continue
        if not plan.awq:
            for span in dict.fromkeys(part.columns for part in plan.parts):
                candidates.setdefault(span[1] - span[0], []).append((name, span))
    chosen: dict[str, tuple[tuple[int, int], ...]] = {}
    for width, sites in sorted(candidates.items()):
        count = min(len(sites), budget // (4 * width * width))
        budget -= count * 4 * width * width
        for name, span in (sites[i * len(sites) // count] for i in range(count)):
            chosen[name] = (*chosen.get(name, ()), span)
    return chosen
