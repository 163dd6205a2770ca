"""Recording what the quantizer wants to know about inputs, while the model runs.

Tokens are kept with equal chance whatever step or prompt they come from, as long as each call brings one of them: every
call offers the same number of its tokens, each draws a random key, and the smallest keys stay. Everything gathered lies
in main memory, wherever the model runs: 2 * tokens * K bytes for each input, and 4 * width^2 for each Hessian.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.safetensors_write import save_file
from ..checkpoint.save import replacing
from .calibration_file import FORMAT, HESSIAN, KEYS, MEAN, VERSION, Calibration, Counts
from .statistics import InputStatistics, named_generator

logger = logging.getLogger("svdquant")

TOKENS = 512  # kept for each input; 1.8 GB for all inputs of FLUX.1
HESSIAN_TOKENS = 1024  # of each call that go into a Hessian
CHUNK_ROWS = 1024  # of an input that are widened to float32 at a time

Range = tuple[int, int]


@dataclass
class _Site:
    """What is gathered about one input."""

    generator: torch.Generator
    tokens: Tensor
    keys: Tensor
    sum: Tensor | None  # None: it goes on from a file without means
    square_sum: Tensor
    absmax: Tensor
    hessians: dict[Range, Tensor]
    counts: Counts


@dataclass
class Collector:
    """Gathers statistics of named inputs. Nothing that it is shown is changed.

    Args:
        seed: of the choice of tokens.
        tokens: how many to keep for each input.
        hessians: name -> ranges of channels to gather a Hessian for.
    """

    seed: int = 0
    tokens: int = TOKENS
    hessians: Mapping[str, tuple[Range, ...]] = field(default_factory=dict)
    _sites: dict[str, _Site] = field(default_factory=dict, repr=False)

    @torch.no_grad()
    def add(self, name: str, x: Tensor) -> None:
        """Take in one call's input of layer `name`: (..., K) any float dtype and device.

        Tokens with NaN or infinite values are left out and counted.

        Raises:
            ValueError: K differs from earlier calls.
        """
        x = x.detach().reshape(-1, x.shape[-1])
        site = self._sites.get(name)
        if site is None:
            site = self._open(name, x.shape[1])
        channels = site.square_sum.shape[0]
        if x.shape[1] != channels:
            raise ValueError(f"{name}: {x.shape[1]} channels, expected {channels} as in earlier calls.")
        if len(x) == 0:
            return
        moments, finite = _moments(x)
        count = int(moments[-1])
        site.counts.dropped += len(x) - count
        if count == 0:
            self._sites[name] = site
            return
        drawn = torch.randperm(len(x), generator=site.generator)
        if count < len(x):
            drawn = drawn[finite.cpu()[drawn]]
        products = {}
        if site.hessians:
            sample = x[drawn[:HESSIAN_TOKENS].to(x.device)].float()
            products = {(a, b): (sample[:, a:b].T @ sample[:, a:b]).cpu() for a, b in site.hessians}
        keys, offered, stay = self._draw(site, drawn[: self.tokens])
        entering = x[offered.to(x.device)].to("cpu", torch.bfloat16)
        # Nothing below can fail for want of memory on the device: a call counts whole or not at all.
        sums, square_sums, absmax = moments[:-1].split(channels)
        if site.sum is not None:
            site.sum += sums
        site.square_sum += square_sums
        torch.maximum(site.absmax, absmax, out=site.absmax)
        self._exchange(site, entering, keys, stay)
        for span, product in products.items():
            site.hessians[span] += product
        site.counts.tokens += count
        site.counts.calls += 1
        site.counts.hessian_tokens += min(HESSIAN_TOKENS, count) if products else 0
        self._sites[name] = site

    def _open(self, name: str, channels: int) -> _Site:
        return _Site(
            generator=named_generator(self.seed, name),
            tokens=torch.zeros(0, channels, dtype=torch.bfloat16),
            keys=torch.zeros(0, dtype=torch.float64),
            sum=torch.zeros(channels),
            square_sum=torch.zeros(channels),
            absmax=torch.zeros(channels),
            hessians={(a, b): torch.zeros(b - a, b - a) for a, b in self.hessians.get(name, ())},
            counts=Counts(),
        )

    def _draw(self, site: _Site, offered: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which tokens stay after some are offered.

        Returns:
            Keys of those that enter, their indices, and which of the old ones stay.
        """
        drawn = torch.rand(len(offered), dtype=torch.float64, generator=site.generator)
        stay, enter = torch.ones_like(site.keys, dtype=torch.bool), torch.ones_like(drawn, dtype=torch.bool)
        if len(site.keys) + len(drawn) > self.tokens:
            # Only what could survive moves: later calls bring ever fewer such tokens.
            limit = torch.cat((site.keys, drawn)).kthvalue(self.tokens).values
            stay, enter = site.keys <= limit, drawn <= limit
        return drawn[enter], offered[enter], stay

    @staticmethod
    def _exchange(site: _Site, entering: Tensor, keys: Tensor, stay: Tensor) -> None:
        """New tokens take the places of those that leave, then further ones: once all are taken, little moves."""
        places = (~stay).nonzero().flatten()
        count = len(places)  # never more than enter
        site.tokens[places], site.keys[places] = entering[:count], keys[:count]
        if count < len(entering):
            site.tokens = torch.cat((site.tokens, entering[count:]))
            site.keys = torch.cat((site.keys, keys[count:]))

    @staticmethod
    def resume(file: Calibration, seed: int = 0, tokens: int = TOKENS) -> "Collector":
        """A collector that goes on where a file ends; its Hessians are those of the file.

        Raises:
            CheckpointError: the file is damaged.
        """
        collector = Collector(seed, tokens)
        for name in file:
            found, counts, keys = file[name], file.counts(name), file.keys_of(name)
            order = keys.argsort()[:tokens]
            collector._sites[name] = _Site(
                generator=named_generator(seed, f"{name} after {counts.calls} calls"),
                tokens=found.tokens[order],
                keys=keys[order],
                sum=None if found.mean is None else found.mean * counts.tokens,
                square_sum=found.mean_square * counts.tokens,
                absmax=found.absmax,
                hessians={span: hessian * counts.hessian_tokens for span, hessian in found.hessians.items()},
                counts=counts,
            )
        collector.hessians = {name: tuple(site.hessians) for name, site in collector._sites.items() if site.hessians}
        return collector

    def names(self) -> list[str]:
        """Of all inputs that were shown, in the order of their first call."""
        return list(self._sites)

    def hessian_names(self) -> list[str]:
        """Of inputs with Hessians."""
        return [name for name, site in self._sites.items() if site.hessians]

    def scarce(self, per_channel: int) -> list[str]:
        """Inputs of which fewer rows were seen than `per_channel` for each of their channels."""
        return [n for n, s in self._sites.items() if s.counts.tokens < per_channel * len(s.absmax)]

    @property
    def nbytes(self) -> int:
        """What a file of it will take, without its header."""
        return sum(
            s.tokens.nbytes + s.keys.nbytes + 12 * len(s.absmax) + sum(g.nbytes for g in s.hessians.values())
            for s in self._sites.values()
        )

    def statistics(self, name: str) -> InputStatistics:
        """What was gathered about one input so far."""
        site = self._sites[name]
        return InputStatistics(
            tokens=site.tokens,
            mean_square=site.square_sum / max(1, site.counts.tokens),
            absmax=site.absmax,
            count=site.counts.tokens,
            hessians={k: g / max(1, site.counts.hessian_tokens) for k, g in site.hessians.items()},
            hessian_count=site.counts.hessian_tokens,
            mean=None if site.sum is None else site.sum / max(1, site.counts.tokens),
        )

    def summary(self) -> dict[str, int]:
        """Numbers for a report: inputs, fewest and most calls, fewest tokens, tokens left out as not finite."""
        counts = [site.counts for site in self._sites.values()]
        return {
            "inputs": len(counts),
            "fewest_calls": min((c.calls for c in counts), default=0),
            "most_calls": max((c.calls for c in counts), default=0),
            "fewest_tokens": min((c.tokens for c in counts), default=0),
            "dropped_tokens": sum(c.dropped for c in counts),
        }

    def save(
        self, path: Path, metadata: Mapping[str, str] | None = None, others: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write everything to a safetensors file; a file of that name appears, or is replaced, only when complete.

        Args:
            metadata: words about the model and the prompts, kept in the file.
            others: tensors that the file holds beside the statistics.

        Raises:
            SVDQuantError: no room, or the folder cannot be written; an older file is left as it was.
        """
        tensors, counts = dict(others or {}), {}
        for name, site in self._sites.items():
            found = self.statistics(name)
            tensors[f"{name}.tokens"], tensors[f"{name}.{KEYS}"] = found.tokens, site.keys
            tensors[f"{name}.mean_square"], tensors[f"{name}.absmax"] = found.mean_square, found.absmax
            if found.mean is not None:
                tensors[f"{name}.{MEAN}"] = found.mean
            for (start, stop), hessian in found.hessians.items():
                tensors[f"{name}.{HESSIAN}.{start}.{stop}"] = hessian
            counts[name] = site.counts.to_list()
        header = {**(metadata or {}), "format": FORMAT, "version": str(VERSION), "counts": json.dumps(counts)}
        with replacing(path, sum(t.nbytes for t in tensors.values())) as part:
            save_file(tensors, part, header)
        logger.info("wrote calibration %s: %d inputs", path, len(counts))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the finite tokens of (M, K).

    Returns:
        (3K + 1,) float32 on the CPU: sum, sum of squares, absmax, number of finite tokens; and (M,) bool, which those
        are.
    """
    total = torch.zeros(x.shape[1], device=x.device)
    square_sum, absmax, finite = torch.zeros_like(total), torch.zeros_like(total), []
    for rows in x.split(CHUNK_ROWS):
        wide = rows.float()
        finite.append(torch.isfinite(wide).all(dim=1))
        wide = torch.where(finite[-1][:, None], wide, 0.0)
        total += wide.sum(dim=0)
        wide = wide.abs_()
        torch.maximum(absmax, wide.amax(dim=0), out=absmax)
        square_sum += wide.square_().sum(dim=0)
    mask = torch.cat(finite)
    return torch.cat((total, square_sum, absmax, mask.sum()[None].float())).cpu(), mask
