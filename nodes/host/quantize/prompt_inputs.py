"""What the layers of a text encoder see when it reads prompts.

The encoder runs once over all prompts for each of its blocks, so that the second moments of one block are in memory at
a time: for T5-XXL 0.6 GB in place of 15. Its weights lie where ComfyUI puts them, as in any other run. Every token is
brought to one size first: behind the attention of a language model the first one is a hundred times as large as the
others, and would be all that counts.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ....svdq_core.quantize.statistics import InputStatistics, named_generator
from ....svdq_core.quantize.w4a16 import WIDEST_HESSIAN
from .encoder_source import linears_of
from .encoder_text import encode

EVERY = 5  # of the prompts, one is held out: candidates of a layer are compared on it
TOKENS = 512  # of those that are kept
SEED = 0


class PromptInputs:
    """Inputs of the Linears of one block after the other; what BlockInputs wants.

    Args:
        clip: the 16-bit encoder. prompts: what it reads, at least two.
        blocks: name of each Linear in the file -> its block.
    """

    def __init__(self, clip, prompts: Sequence[str], blocks: Mapping[str, str]):
        self.clip, self.prompts, self.blocks = clip, tuple(prompts), blocks
        self._modules = linears_of(clip)

    def of_block(self, block: str) -> dict[str, InputStatistics]:
        """Statistics by name, of those that ran."""
        names = [name for name, owner in self.blocks.items() if owner == block and name in self._modules]
        gathered = {name: _Gathered(name) for name in names}
        self._listen(gathered)
        return {name: found.statistics() for name, found in gathered.items() if found.count and found.kept}

    def _listen(self, gathered: Mapping[str, "_Gathered"]) -> None:
        handles = [
            self._modules[name].register_forward_pre_hook(partial(_take_in, found)) for name, found in gathered.items()
        ]
        try:
            for index, prompt in enumerate(self.prompts):
                for found in gathered.values():
                    found.held_out = index % EVERY == EVERY - 1
                encode(self.clip, prompt, padded=False)
        finally:
            for handle in handles:
                handle.remove()

    def close(self) -> None:
        self._modules = {}


def _take_in(found: "_Gathered", module: nn.Module, args: tuple) -> None:
    rows = args[0].detach().reshape(-1, args[0].shape[-1]).float()
    size = rows.square().mean(dim=1, keepdim=True).sqrt()
    found.add(rows / torch.where(size > 0, size, torch.ones_like(size)))


class _Gathered:
    """Second moments of one input, and rows that are not in them."""

    def __init__(self, name: str):
        self.name, self.held_out, self.count = name, False, 0
        self.hessian: Tensor | None = None
        self.square_sum: Tensor | None = None
        self.absmax: Tensor | None = None
        self.kept: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        rows = rows[torch.isfinite(rows).all(dim=1)]
        if self.held_out:
            self.kept.append(rows.cpu())
            return
        self.count += len(rows)
        if self.square_sum is None or self.absmax is None:
            self.square_sum, self.absmax = torch.zeros_like(rows[0]), torch.zeros_like(rows[0])
            if rows.shape[1] <= WIDEST_HESSIAN:
                self.hessian = rows.new_zeros(rows.shape[1], rows.shape[1])
        self.square_sum += rows.square().sum(dim=0)
        self.absmax = torch.maximum(self.absmax, rows.abs().amax(dim=0))
        if self.hessian is not None:
            self.hessian.addmm_(rows.T, rows)

    def statistics(self) -> InputStatistics:
        assert self.square_sum is not None and self.absmax is not None
        tokens = torch.cat(self.kept)
        if len(tokens) > TOKENS:
            tokens = tokens[torch.randperm(len(tokens), generator=named_generator(SEED, self.name))[:TOKENS]]
        span = (0, len(self.square_sum))
        return InputStatistics(
            tokens=tokens,
            mean_square=self.square_sum / self.count,
            absmax=self.absmax,
            count=self.count,
            hessians={} if self.hessian is None else {span: self.hessian / self.count},
            hessian_count=self.count,
        )
