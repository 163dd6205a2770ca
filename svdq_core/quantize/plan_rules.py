"""Five rules that choose which Linears of a traced model are quantized, and how.

They choose what the published SVDQuant files of ten families hold, layer for layer (FLUX.1, FLUX.2, Chroma, Z-Image,
Qwen-Image, Krea 2, MiniMax H3, SDXL, Wan 2.1, PixArt); rules 4 and 5 and their numbers were set with those in view.
What they choose for 35 models of ComfyUI 0.30 stands in tests/families/plans.json, looked through by eye.

1. Only repeated blocks: what lies outside takes few parameters and hurts most.
2. Only what the kernels can hold and what is worth it: outputs in 8s, enough weights. Inputs that do not fill groups of
   64 get columns of zeros (svdq_core/padding.py).
3. What a step gives one row for a picture, however large, is modulation: its weights count, its time does not. W4A16
   where they are a tenth of the model, as FLUX.1's 27 % and Qwen-Image's 33 % are in published files, 16 bits below it,
   as Z-Image's 2 % and Chroma's 3 %.
4. What reads the prompt as it came, the same in every block (keys and values of cross-attention), stays in 16 bits.
5. Blocks of a kind that makes up less than a few percent (refiners of the text) stay in 16 bits: Krea 2's 2.7 % and
   MiniMax H3's 2.3 % do in published files, Z-Image's, of the same kind as its other blocks, do not.
"""

from dataclasses import replace
from itertools import pairwise

from ...kernels.format import GROUP_SIZE_AWQ, GROUP_SIZE_INT4
from .model_plan import ModelPlan, PlannedLayer
from .part_plan import LayerPlan
from .traced_layers import TracedLinear, TracedModel

OUTPUT_MULTIPLE = 8
SMALLEST = 1 << 18  # weights; LTX-2.3's gate logits have 2^17
SMALLEST_SHARE = 1 / 4096  # of a model too small for the number above
WORTH_W4A16 = 0.10
SMALL_KIND = 0.045


def plan_model(traced: TracedModel) -> ModelPlan:
    """What becomes of each Linear of the repeated blocks."""
    kinds: dict[str, int] = {}
    for linear in traced:
        kinds[linear.stack] = kinds.get(linear.stack, 0) + linear.weights
    smallest = min(SMALLEST, traced.parameters * SMALLEST_SHARE)
    inside = [linear for linear in traced if linear.block]
    fixed = {x.name for x in inside if _runs(x) and not (x.grows_with_image or x.grows_with_text)}
    held = {x.name for x in inside if not _misfit(x, smallest, x.name in fixed)}
    modulation = sum(x.weights for x in inside if x.name in fixed & held) / traced.parameters
    layers = {}
    for x in inside:
        why, parts = _misfit(x, smallest, x.name in fixed), None
        if not why and x.name in fixed:
            if modulation >= WORTH_W4A16:
                parts = LayerPlan.modulation(x.out_features, x.in_features)
            else:
                why = f"modulation, one row for each picture, and less than {WORTH_W4A16:.0%} of the model"
        elif not why and _is_context(x):
            why = "reads the prompt as it came, as the same layer of every block does"
        elif not why and kinds[x.stack] < SMALL_KIND * traced.parameters:
            why = f"blocks of its kind are less than {SMALL_KIND:.1%} of the model"
        elif not why:
            parts = replace(split_by_input(x), multiples=(OUTPUT_MULTIPLE, 1))  # narrower groups are filled up
        layers[x.name] = PlannedLayer(x.name, x.block, x.out_features, x.in_features, parts, x.input_of, why)
    return ModelPlan(traced.title, traced.parameters, layers)


def split_by_input(linear: TracedLinear) -> LayerPlan:
    """One part, or one for each range of columns where some come out of a GELU and some do not."""
    rows, columns = linear.out_features, linear.in_features
    whole = linear.gelu == ((0, columns),)
    edges = sorted({0, columns, *(edge for span in linear.gelu for edge in span)})
    if whole or len(edges) == 2 or any(edge % GROUP_SIZE_INT4 for edge in edges):
        return LayerPlan.whole(rows, columns, whole)
    spans = list(pairwise(edges))
    return LayerPlan.stack_columns(rows, tuple(b - a for a, b in spans), tuple(span in linear.gelu for span in spans))


def _runs(linear: TracedLinear) -> bool:
    return linear.calls > 0


def _is_context(linear: TracedLinear) -> bool:
    return linear.is_context and linear.grows_with_text and not linear.grows_with_image


def _misfit(linear: TracedLinear, smallest: float, fixed: bool) -> str:
    """Why a Linear cannot be quantized, or need not be; "" if it can.

    Args:
        fixed: it has as many rows whatever the picture: it would be W4A16.
    """
    if not linear.calls:
        return "runs once for a prompt, not in every step" if linear.prepares else "did not run in a step"
    if linear.bypassed:
        return "its weight is read past the layer"
    if fixed and linear.in_features % GROUP_SIZE_AWQ:
        return f"{linear.in_features} inputs are no multiple of {GROUP_SIZE_AWQ}"
    if linear.out_features % OUTPUT_MULTIPLE:
        return f"{linear.out_features} outputs are no multiple of {OUTPUT_MULTIPLE}"
    return "too few weights to be worth it" if linear.weights < smallest else ""
