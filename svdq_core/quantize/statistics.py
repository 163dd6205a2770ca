"""What is known about the input of a layer: some of its tokens, and moments of all of them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import gelu, pad

GELU_MEAN_SQUARE = 0.4252  # of GELU(z) for standard-normal z


def named_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator whose numbers depend on the seed and the layer's name alone, not on the order of layers."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of the raw input x of a Linear: after a GELU, before shift and smoothing.

    Args:
        tokens: (T, K) a sample, any float dtype.
        mean_square: (K,) float32 mean of x^2.
        absmax: (K,) float32 largest |x|.
        count: number of tokens behind these two; 0: they are assumed, not measured.
        hessians: (start, stop) of consecutive channels -> (stop - start, stop - start) float32 mean of x x^T.
        hessian_count: number of tokens behind the Hessians.
        mean: (K,) float32 mean of x, over the same tokens as mean_square; None: not recorded.
    """

    tokens: Tensor
    mean_square: Tensor
    absmax: Tensor
    count: int = 0
    hessians: Mapping[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)
    hessian_count: int = 0
    mean: Tensor | None = None

    @property
    def measured(self) -> bool:
        return self.count > 0

    @property
    def channels(self) -> int:
        return self.mean_square.shape[0]

    @staticmethod
    def synthetic(
        in_features: int, gelu_columns: tuple[tuple[int, int], ...], tokens: int, generator: torch.Generator
    ) -> "InputStatistics":
        """The input of a normalized layer as far as it is known without data: every channel standard normal.

        Args:
            gelu_columns: ranges of channels that come out of a GELU; there it is the GELU of a standard normal.
            tokens: how many to draw.
        """
        x = torch.randn(tokens, in_features, generator=generator)
        mean_square, absmax = torch.ones(in_features), torch.full((in_features,), 4.0)
        for start, stop in gelu_columns:
            x[:, start:stop] = gelu(x[:, start:stop], approximate="tanh")
            mean_square[start:stop] = GELU_MEAN_SQUARE
        return InputStatistics(x, mean_square, absmax)

    @staticmethod
    def from_tokens(tokens: Tensor) -> "InputStatistics":
        """Measured on the tokens alone: (T, K) any float dtype."""
        x = tokens.float()
        return InputStatistics(tokens, x.square().mean(dim=0), x.abs().amax(dim=0), len(x), mean=x.mean(dim=0))

    def columns(self, start: int, stop: int) -> "InputStatistics":
        """The statistics of some consecutive channels, renumbered from 0."""
        hessians = {}
        for (left, right), hessian in self.hessians.items():
            if left <= start and stop <= right:
                hessians[0, stop - start] = hessian[start - left : stop - left, start - left : stop - left]
        return replace(
            self,
            tokens=self.tokens[:, start:stop],
            mean_square=self.mean_square[start:stop],
            absmax=self.absmax[start:stop],
            hessians=hessians,
            mean=None if self.mean is None else self.mean[start:stop],
        )

    def widened(self, channels: int) -> "InputStatistics":
        """With channels behind it that are always zero."""
        more = channels - self.channels
        hessians = {
            (0, channels) if span == (0, self.channels) else span: pad(h, (0, more, 0, more))
            if span == (0, self.channels)
            else h
            for span, h in self.hessians.items()
        }
        return replace(
            self,
            tokens=pad(self.tokens, (0, more)),
            mean_square=pad(self.mean_square, (0, more)),
            absmax=pad(self.absmax, (0, more)),
            hessians=hessians,
            mean=None if self.mean is None else pad(self.mean, (0, more)),
        )

    def to(self, device: torch.device) -> "InputStatistics":
        """On another device."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            mean_square=self.mean_square.to(device, torch.float32),
            absmax=self.absmax.to(device, torch.float32),
            hessians={k: g.to(device, torch.float32) for k, g in self.hessians.items()},
            mean=None if self.mean is None else self.mean.to(device, torch.float32),
        )

    def sample(self, count: int) -> Tensor:
        """At most `count` of the tokens, evenly strided: (T, K) float32."""
        return self.tokens[:: max(1, -(-len(self.tokens) // count))].float()

    def hessian(self) -> tuple[Tensor, int]:
        """Mean of x x^T over all channels, (K, K) float32, and the number of tokens behind it.

        Recorded if there is such a record, else of the tokens at hand.
        """
        recorded = self.hessians.get((0, self.channels))
        if recorded is not None:
            return recorded, self.hessian_count
        x = self.tokens.float()
        return x.T @ x / max(1, len(x)), len(x)
