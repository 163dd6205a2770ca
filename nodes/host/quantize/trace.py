"""What a model is made of, found by running ComfyUI's own class of it: no table, no weights.

Three forwards on noise: the second has a larger picture, the third a longer text. Which Linears lie in repeated blocks,
which read the same tensor, what that comes out of and what its number of rows depends on is all that a quantizer must
know of a family; svdq_core/quantize/plan_rules.py draws the conclusions.
"""

import logging
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import comfy.model_base
import torch
from torch import nn

from ....svdq_core.errors import ArchitectureError
from ....svdq_core.quantize.traced_layers import Span, TracedLinear, TracedModel
from .experts import find_experts
from .noise_conditions import Request, WidthError, draw_latent, guess_text_widths, learn_width, make_conditions
from .replica import replicate, values_or_noise
from .watch import Seen, Tag, Watch, block_of

logger = logging.getLogger("svdquant")

# What to try, in turn. Krea 2 takes pictures in latents of videos; OmniGen 2 counts its text by a mask, which Hunyuan
# Video 1.5 does not expect beside its further texts; PixArt divides by its side over 64, rounded.
ATTEMPTS = (
    Request(side=8, frames=2),
    Request(side=8, frames=1),
    Request(side=8, frames=1, masked=True),
    Request(side=16, frames=2),
    Request(side=34, frames=1),
)
# Times the columns: Z-Image fills its pictures up to a multiple of 32 tokens; some models have a largest size.
WIDER = (4, 2)
LONGER = 4  # times the text
LONGEST = 600  # tokens; FLUX.2 fills its texts up to 512
MANY_ROWS = 64  # more than modulation has
MOST_LESSONS = 12  # widths that layers tell, one after the other
ALIKE = 0.75  # of the blocks of a kind: some last ones lack an output, the stages of a U-Net are no blocks
HALF_WAY = 0.5  # of a sampling


class Runs(NamedTuple):
    """What was seen in the three forwards: of a small picture and a short text, a larger picture, a longer text."""

    base: Watch
    wider: Watch
    longer: Watch


def trace_model(model: comfy.model_base.BaseModel, blocks: dict[str, str] | None = None) -> tuple[TracedModel, Request]:
    """Run a model three times on noise; its weights are neither read nor needed.

    Args:
        model: on any device, also without memory.
        blocks: block name -> its kind, where they are known; None: they are found.

    Returns:
        What was found, and what the model takes as input.

    Raises:
        ArchitectureError: it cannot be run on noise, or it has no repeated blocks.
    """
    with torch.inference_mode(False), torch.no_grad():  # ComfyUI's nodes run in a mode whose tensors have no versions
        return _trace(model, find_blocks(model.diffusion_model) if blocks is None else blocks)


def _trace(model: comfy.model_base.BaseModel, blocks: dict[str, str]) -> tuple[TracedModel, Request]:
    if not blocks:
        raise ArchitectureError(
            f"{type(model).__name__} has no repeated blocks with Linear layers: there is nothing that SVDQuant would "
            "make smaller. Use the model as it is."
        )
    twin = replicate(model, values_or_noise(model.diffusion_model), torch.device("cpu"))
    request, base = _find_inputs(twin, blocks)
    kinds = bool(base.bypassed)  # then weights without memory are read, which only the whole watch can answer
    wider = _run_wider(twin, blocks, request, kinds)
    longer = _run(twin, blocks, replace(request, tokens=LONGER * request.tokens), kinds)
    if any(_is_padded(seen, wider.seen[name], longer.seen[name]) for name, seen in base.seen.items() if seen.calls):
        longer = _run(twin, blocks, replace(request, tokens=LONGEST), kinds)
    linears = {name: m for name, m in model.diffusion_model.named_modules() if isinstance(m, nn.Linear)}
    ran = [name for name, seen in base.seen.items() if seen.calls]
    order = [*ran, *(name for name in linears if name not in set(ran))]
    runs = Runs(base, wider, longer)
    traced = [_describe(name, linears[name], blocks, runs) for name in order]
    traced = _share_among_experts(traced, find_experts(model.diffusion_model, blocks))
    parameters = sum(p.numel() for p in model.diffusion_model.parameters())
    return TracedModel(type(model).__name__, parameters, tuple(traced)), request


def find_blocks(network: nn.Module) -> dict[str, str]:
    """The repeated blocks of a network: block name -> its kind.

    A block is a member of a ModuleList; nearly all members of its class hold the same Linears as the others of their
    list.
    """
    members: dict[type, dict[str, tuple[str, ...]]] = {}
    alike: Counter[type] = Counter()
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList):
            kinds: Counter[tuple[type, tuple[str, ...]]] = Counter()
            for index, member in module.named_children():
                inside = tuple(n for n, m in member.named_modules() if isinstance(m, nn.Linear))
                members.setdefault(type(member), {})[f"{name}.{index}"] = inside
                kinds[type(member), inside] += 1
            for kind in {kind for kind, _ in kinds}:
                alike[kind] += max(count for (other, _), count in kinds.items() if other is kind)
    found: dict[str, str] = {}
    for kind, named in members.items():
        common, count = Counter(named.values()).most_common(1)[0]
        if count > 1 and alike[kind] >= ALIKE * len(named) and common and "" not in common:
            found |= dict.fromkeys(named, kind.__name__)
    # a list within a block, as of experts, belongs to the block
    return {name: kind for name, kind in found.items() if not block_of(name.rpartition(".")[0], found)}


def _find_inputs(twin: comfy.model_base.BaseModel, blocks: dict[str, str]) -> tuple[Request, Watch]:
    """What the model takes, and the forward that it took it in."""
    problems: list[Exception] = []
    for request in ATTEMPTS:
        try:
            return _learn(twin, blocks, request)
        except _UnlearnedError as error:
            problems.append(error.cause)
            learnt = error.request
        for width in guess_text_widths(twin):
            try:
                return _learn(twin, blocks, replace(learnt, widths=learnt.widths | {"text": width}))
            except _UnlearnedError as error:
                problems.append(error.cause)
    raise ArchitectureError(
        f"{type(twin).__name__} cannot be run on noise ({problems[0]}), so its layers cannot be told apart. Tell the "
        "authors of this pack which model it is."
    ) from problems[0]


class _UnlearnedError(Exception):
    """A forward failed, and no condition's width explains it.

    Args:
        request: what it was asked for. cause: the error.
    """

    def __init__(self, request: Request, cause: Exception):
        super().__init__(str(cause))
        self.request, self.cause = request, cause


def _learn(twin: comfy.model_base.BaseModel, blocks: dict[str, str], request: Request) -> tuple[Request, Watch]:
    for _ in range(MOST_LESSONS):
        try:
            return request, _run(twin, blocks, request)
        except WidthError as error:
            better = learn_width(request, error)
            if better is None:
                raise _UnlearnedError(request, error) from error
            request = better
        except Exception as error:
            raise _UnlearnedError(request, error) from error
    raise _UnlearnedError(request, RuntimeError("its inputs never fit"))


def _run(twin: comfy.model_base.BaseModel, blocks: dict[str, str], request: Request, kinds: bool = True) -> Watch:
    """One forward; without `kinds` only rows are counted, which takes a fraction of the time."""
    generator = torch.Generator().manual_seed(0)
    latent, shapes = draw_latent(twin, request, generator)
    sigma = torch.full((request.batch,), float(twin.model_sampling.percent_to_sigma(HALF_WAY)))
    watch = Watch(twin.diffusion_model, blocks)
    options = {"optimized_attention_override": watch.attention}
    try:
        with watch if kinds else nullcontext():
            watch.preparing = True
            conditions = make_conditions(twin, latent, shapes, request, generator=generator)
            watch.preparing = False
            twin.apply_model(latent, sigma, transformer_options=options, **conditions)
    finally:
        watch.close()
    return watch


def _run_wider(twin: comfy.model_base.BaseModel, blocks: dict[str, str], request: Request, kinds: bool) -> Watch:
    for factor in WIDER[:-1]:
        try:
            return _run(twin, blocks, replace(request, wide=factor), kinds)
        except Exception:  # noqa: BLE001  the smaller one says what is wrong
            continue
    return _run(twin, blocks, replace(request, wide=WIDER[-1]), kinds)


def _is_padded(base: Seen, wider: Seen, longer: Seen) -> bool:
    """Whether a Linear has always the same many rows: perhaps of a text that is filled up."""
    return max(base.calls) >= MANY_ROWS and base.calls == wider.calls == longer.calls


def _share_among_experts(traced: list[TracedLinear], experts: dict[str, tuple[str, ...]]) -> list[TracedLinear]:
    """What the forwards showed of all experts together, for each of them."""
    by_name = {linear.name: linear for linear in traced}
    found = []
    for linear in traced:
        others = [by_name[name] for name in experts.get(linear.name, ())]
        ran = next((other for other in others if other.calls), None)
        if ran is not None:
            linear = replace(
                linear,
                calls=max(linear.calls, 1),
                grows_with_image=any(other.grows_with_image for other in others),
                grows_with_text=any(other.grows_with_text for other in others),
                gelu=linear.gelu if linear.calls else ran.gelu,
                gated=linear.gated if linear.calls else ran.gated,
            )
        found.append(linear)
    return found


def _describe(name: str, module: nn.Linear, blocks: dict[str, str], runs: Runs) -> TracedLinear:
    seen, wider, longer = (run.seen.get(name, Seen()) for run in runs)
    block = block_of(name, blocks)
    gelu, gated = _kinds(seen.tags, module.in_features)
    return TracedLinear(
        name=name,
        out_features=module.out_features,
        in_features=module.in_features,
        block=block,
        stack=blocks.get(block, ""),
        calls=len(seen.calls),
        prepares=seen.prepares,
        grows_with_image=wider.calls != seen.calls,
        grows_with_text=longer.calls != seen.calls,
        is_context=seen.context,
        input_of=seen.input_of or name,
        gelu=gelu,
        gated=gated,
        bypassed=name in runs.base.bypassed,
    )


def _kinds(tags: list[Tag], width: int) -> tuple[tuple[Span, ...], bool]:
    """Which input channels come out of a GELU in every call, and whether the input is gated."""
    if len(tags) != 1:
        return (), False
    tag = tags[0]
    if isinstance(tag, tuple):
        spans, start = [], 0
        for part, size in tag:
            if part == "gelu":
                spans.append((start, start + size))
            start += size
        return (tuple(spans) if start == width else ()), False
    return (((0, width),) if tag == "gelu" else ()), tag == "gated"
