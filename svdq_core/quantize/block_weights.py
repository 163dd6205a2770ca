"""Weights of the block that is quantized on the device, those of the next one on their way from the disk."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor


class BlockWeights(Mapping[str, Tensor]):
    """Weights on the device, those of the last block asked for kept: its inputs and its quantization both read them.

    Where the weights say of themselves that they read a file (`reads_file`), the next block is read meanwhile.

    Args:
        weights: host tensor name -> tensor.
        blocks: module name -> name of its block, in the order in which blocks will be asked for.
    """

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device, blocks: Mapping[str, str]):
        self.weights, self.device, self.blocks = weights, device, blocks
        self._block, self._held = "", {}
        self._coming: dict[str, dict[str, Future[Tensor]]] = {}  # block -> its tensors
        self._reader = ThreadPoolExecutor(1) if getattr(weights, "reads_file", False) else None
        self._names: dict[str, list[str]] = {block: [] for block in blocks.values()}
        for name in weights:
            if (block := self._block_of(name)) in self._names:
                self._names[block].append(name)

    def __getitem__(self, name: str) -> Tensor:
        block = self._block_of(name)
        if not block:
            return self.weights[name].to(self.device)
        if block != self._block:
            self._enter(block)
        if name not in self._held:
            coming = self._coming.get(block, {}).pop(name, None)
            self._held[name] = (self.weights[name] if coming is None else coming.result()).to(self.device)
        return self._held[name]

    def __contains__(self, name: object) -> bool:
        return name in self.weights

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def close(self) -> None:
        """Nothing more will be read."""
        if self._reader is not None:
            self._reader.shutdown(cancel_futures=True)
            self._reader, self._coming = None, {}

    def _block_of(self, name: str) -> str:
        return self.blocks.get(name.rpartition(".")[0], "")

    def _enter(self, block: str) -> None:
        """Let go of what was held, and have the block after this one read."""
        self._block, self._held = block, {}
        if self._reader is None:
            return
        order = list(self._names)
        following = order[order.index(block) + 1 :][:1]
        for other in [other for other in self._coming if other not in (block, *following)]:
            for future in self._coming.pop(other).values():
                future.cancel()
        for other in following:
            if other not in self._coming:
                read = self.weights.__getitem__
                self._coming[other] = {name: self._reader.submit(read, name) for name in self._names[other]}
