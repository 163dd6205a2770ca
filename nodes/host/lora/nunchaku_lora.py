"""LoRA files that were converted for nunchaku: merged with a base branch, in the tile orders of its kernels.

Source: nunchaku's converter, checked against a file that it wrote. The first columns of every 4-bit layer's factors are
the base model's own low-rank branch, the LoRA follows; it acts on the activation before smoothing, whatever the base
was.
"""

import torch
from torch import Tensor

from ....svdq_core import layouts
from ....svdq_core.models import FAMILIES, Architecture, LinearMap


def is_nunchaku(lora: dict[str, Tensor]) -> bool:
    """Whether a LoRA names layers as nunchaku fuses them."""
    return any(".mlp_fc1." in key or ".mlp_context_fc1." in key or ".qkv_proj." in key for key in lora)


def from_nunchaku(lora: dict[str, Tensor], patcher) -> dict[str, Tensor]:
    """The same LoRA under the host's names; what is in no packed form stays as it is.

    Args:
        patcher: the MODEL it is for; where it is quantized, its own branch tells how many columns are the base's.
    """
    family = _family(patcher)
    rest = dict(lora)
    converted: dict[str, Tensor] = {}
    for block in family.blocks:
        indices = {int(key.split(".")[1]) for key in lora if key.startswith(block.source + ".")}
        for index in sorted(indices):
            source, host = f"{block.source}.{index}", f"{block.host}.{index}"
            for linear in block.linears:
                name = f"diffusion_model.{host}.{linear.host}"
                converted |= _convert_linear(rest, family, linear, source=source, host=name, patcher=patcher)
            for name in block.plain:
                vector = rest.pop(f"{source}.{block.plain_map(name).sources[0]}", None)
                if vector is not None:  # the norms of q and k: new values, not a difference
                    converted[f"diffusion_model.{host}.{name.removesuffix('.weight')}.set_weight"] = vector
    return converted | rest


def _family(patcher) -> Architecture:
    """The family of the MODEL, or the first for which nunchaku's converter was made."""
    converted = [family for family in FAMILIES if family.lora is not None and family.lora.base_rank]
    own = getattr(getattr(patcher, "model", None), "svdquant_architecture", None)
    return own if own in converted else converted[0]


def _convert_linear(
    rest: dict, family: Architecture, linear: LinearMap, *, source: str, host: str, patcher
) -> dict[str, Tensor]:
    """What a file has for one host Linear, taken out of `rest`."""
    found, lora = {}, family.lora
    assert lora is not None  # _family chose so
    pairs = [
        _take_factors(
            rest, linear, source=f"{source}.{name}", host=host, part=i, patcher=patcher, base_rank=lora.base_rank
        )
        for i, name in enumerate(linear.sources)
    ]
    if linear.stack == "columns":
        names, pairs = (host,), [_side_by_side(*pairs)]
    elif len(pairs) == 1:
        names = (host,)
    else:
        names = tuple(part.format(host=host, index=host.split(".")[2]) for part in lora.parts[linear.host])
    for name, pair in zip(names, pairs, strict=True):
        if pair is not None:
            found[f"{name}.lora_down.weight"], found[f"{name}.lora_up.weight"] = pair
    return found


def _take_factors(
    rest: dict, linear: LinearMap, *, source: str, host: str, part: int, patcher, base_rank: int
) -> tuple[Tensor, Tensor] | None:
    """(down (r, K), up (N, r)) without the base branch, or None."""
    down, up = (rest.pop(f"{source}.{name}", None) for name in ("lora_down", "lora_up"))
    if down is None or up is None:
        return None
    if linear.modulation_chunks:
        return down, layouts.rows_from_interleaved(up, linear.modulation_chunks)
    down, up = layouts.proj_down_from_nunchaku(down), layouts.proj_up_from_nunchaku(up)
    base = _base_rank(down, host, part, patcher, base_rank)
    return down[:, base:].T.contiguous(), up[:, base:].contiguous()


def _base_rank(down: Tensor, host: str, part: int, patcher, usual: int) -> int:
    """How many of the first columns are the base model's; where its branch is not at hand, as many as usual."""
    layers = patcher.svdquant_layers() if hasattr(patcher, "svdquant_layers") else {}
    module = layers.get(f"{host}.weight")
    if module is not None and part < len(module.layout.parts):
        own = module.layer_on(down.device).parts[part]["proj_down"]
        rank = own.shape[1]
        if rank <= down.shape[1] and own.shape[0] == down.shape[0] and torch.equal(own, down[:, :rank].to(own.dtype)):
            return rank
    return usual if down.shape[1] > usual else 0


def _side_by_side(
    left: tuple[Tensor, Tensor] | None, right: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor] | None:
    """One LoRA on all columns from one on each half; where nunchaku has split one, both halves have the same up.

    A half without a LoRA counts as one of rank 0; its width is known from FLUX: the MLP is four times the hidden size.
    """
    if left is None:
        if right is None:
            return None
        down, up = right
        left = down.new_zeros(0, down.shape[1] // 4), up.new_zeros(up.shape[0], 0)
    if right is None:
        down, up = left
        right = down.new_zeros(0, 4 * down.shape[1]), up.new_zeros(up.shape[0], 0)
    (left_down, left_up), (right_down, right_up) = left, right
    if left_up.shape == right_up.shape and torch.equal(left_up, right_up):
        return torch.cat((left_down, right_down), dim=1), left_up
    return torch.block_diag(left_down, right_down), torch.cat((left_up, right_up), dim=1)
