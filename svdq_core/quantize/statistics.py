"""What is known about the input of a layer: some of its tokens, and moments of all of them."""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import gelu


def named_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator whose numbers depend on the seed and the layer's name alone, not on the order of layers."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of the raw input x of a Linear: after a GELU, before shift and smoothing. All float32.

    Args:
        tokens: (T, K) a sample.
        mean_square: (K,) mean of x^2.
        absmax: (K,) largest |x|.
        gram: (K, K) mean of x x^T, or None.
        count: number of tokens behind the moments; 0: they are assumed, not measured.
    """

    tokens: Tensor
    mean_square: Tensor
    absmax: Tensor
    gram: Tensor | None = None
    count: int = 0

    @property
    def measured(self) -> bool:
        return self.count > 0

    @staticmethod
    def synthetic(in_features: int, gelu_columns: tuple[tuple[int, int], ...], tokens: int, generator: torch.Generator):
        """The input of a normalized layer as far as it is known without data: every channel standard normal.

        Args:
            gelu_columns: ranges of channels that come out of a GELU; there it is the GELU of a standard normal.
            tokens: how many to draw.
        """
        x = torch.randn(tokens, in_features, generator=generator)
        mean_square, absmax = torch.ones(in_features), torch.full((in_features,), 4.0)
        for start, stop in gelu_columns:
            x[:, start:stop] = gelu(x[:, start:stop], approximate="tanh")
            mean_square[start:stop] = 0.4252  # E[gelu(z)^2] for standard-normal z
        return InputStatistics(x, mean_square, absmax)

    @staticmethod
    def from_tokens(tokens: Tensor) -> "InputStatistics":
        """Measured on the tokens alone: (T, K) any float dtype."""
        x = tokens.float()
        return InputStatistics(x, x.square().mean(dim=0), x.abs().amax(dim=0), x.T @ x / len(x), len(x))

    def columns(self, start: int, stop: int) -> "InputStatistics":
        """The statistics of some consecutive channels."""
        gram = None if self.gram is None else self.gram[start:stop, start:stop]
        return replace(
            self,
            tokens=self.tokens[:, start:stop],
            mean_square=self.mean_square[start:stop],
            absmax=self.absmax[start:stop],
            gram=gram,
        )

    def to(self, device: torch.device, tokens: int) -> "InputStatistics":
        """On another device, with the sample strided down to at most `tokens` rows."""
        stride = max(1, -(-len(self.tokens) // tokens))
        return replace(
            self,
            tokens=self.tokens[::stride].to(device, torch.float32),
            mean_square=self.mean_square.to(device, torch.float32),
            absmax=self.absmax.to(device, torch.float32),
            gram=None if self.gram is None else self.gram.to(device, torch.float32),
        )
