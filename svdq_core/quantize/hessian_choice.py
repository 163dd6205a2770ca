"""Which inputs get a Hessian, when not all of them fit into memory.

The narrowest first: they cost least, and are the most. Where not all of one width fit, every n-th of the model does.
FLUX.1: all of width 3072 take 6.8 GiB, all others another 42 GiB. PixArt: 0.7 and 2.2 GiB.
"""

from .model_plan import ModelPlan


def choose_hessians(plan: ModelPlan, budget: int) -> dict[str, tuple[tuple[int, int], ...]]:
    """Host module name -> ranges of channels, for a Collector.

    Args:
        plan: of the model.
        budget: bytes of main memory for the matrices.
    """
    candidates: dict[int, list[tuple[str, tuple[int, int]]]] = {}
    for layer in plan.quantized:
        if layer.parts is not None and not layer.is_modulation:
            for span in dict.fromkeys(part.columns for part in layer.parts.parts):
                candidates.setdefault(span[1] - span[0], []).append((layer.name, span))
    chosen: dict[str, tuple[tuple[int, int], ...]] = {}
    for width, sites in sorted(candidates.items()):
        count = min(len(sites), budget // (4 * width * width))
        budget -= count * 4 * width * width
        for name, span in (sites[i * len(sites) // count] for i in range(count)):
            chosen[name] = (*chosen.get(name, ()), span)
    return chosen
