"""Recording what the quantizer wants to know about inputs, while the model runs; and the file that holds it.

Tokens are kept with equal chance whatever step or prompt they come from, as long as each call brings one of them: every
call offers the same number of its tokens, each draws a random key, and the smallest keys stay.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from .statistics import InputStatistics, named_generator

logger = logging.getLogger("svdquant")

FORMAT = "svdquant-calibration"
VERSION = 1
TOKENS = 1024  # kept for each input; with K = 3072 that is 6 MB
GRAM_TOKENS = 1024  # of each call that go into a Gram matrix


@dataclass
class _Site:
    """What is gathered about one input."""

    generator: torch.Generator
    tokens: Tensor
    keys: Tensor
    square_sum: Tensor
    absmax: Tensor
    grams: dict[tuple[int, int], Tensor]
    count: int = 0
    gram_count: int = 0
    calls: int = 0
    dropped: int = 0


@dataclass
class Collector:
    """Gathers statistics of named inputs. Nothing that it is shown is changed.

    Args:
        seed: of the choice of tokens.
        tokens: how many to keep for each input.
        grams: name -> ranges of channels to gather a Gram matrix for, 4 * width^2 bytes each.
    """

    seed: int = 0
    tokens: int = TOKENS
    grams: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
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
            site = self._sites[name] = self._open(name, x)
        if x.shape[1] != site.square_sum.shape[0]:
            raise ValueError(f"{name}: {x.shape[1]} channels, expected {site.square_sum.shape[0]} as in earlier calls.")
        finite = torch.isfinite(x).all(dim=1)
        if not bool(finite.all()):
            site.dropped += int((~finite).sum())
            x = x[finite]
        if len(x) == 0:
            return
        wide = x.float()
        site.square_sum += wide.square().sum(dim=0)
        torch.maximum(site.absmax, wide.abs().amax(dim=0), out=site.absmax)
        site.count += len(x)
        site.calls += 1
        drawn = torch.randperm(len(x), generator=site.generator)
        if site.grams:
            sample = wide[drawn[:GRAM_TOKENS].to(x.device)]
            for (start, stop), gram in site.grams.items():
                gram.addmm_(sample[:, start:stop].T, sample[:, start:stop])
            site.gram_count += len(sample)
        self._keep(site, x, drawn[: self.tokens])

    def _open(self, name: str, x: Tensor) -> _Site:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=x.device)

        return _Site(
            generator=named_generator(self.seed, name),
            tokens=x[:0].clone(),
            keys=torch.zeros(0, dtype=torch.float64),
            square_sum=zeros(x.shape[1]),
            absmax=zeros(x.shape[1]),
            grams={(a, b): zeros(b - a, b - a) for a, b in self.grams.get(name, ())},
        )

    def _keep(self, site: _Site, x: Tensor, offered: Tensor) -> None:
        keys = torch.rand(len(offered), dtype=torch.float64, generator=site.generator)
        free = self.tokens - len(site.keys)
        if free < len(keys):
            # Only what could survive moves: later calls bring ever fewer such tokens.
            limit = torch.cat((site.keys, keys)).kthvalue(self.tokens).values
            stay, enter = site.keys <= limit, keys <= limit
            site.keys, site.tokens = site.keys[stay], site.tokens[stay.to(x.device)]
            keys, offered = keys[enter], offered[enter]
        site.keys = torch.cat((site.keys, keys))
        site.tokens = torch.cat((site.tokens, x[offered.to(x.device)].to(site.tokens.dtype)))

    def names(self) -> list[str]:
        return list(self._sites)

    def statistics(self, name: str) -> InputStatistics:
        """What was gathered about one input so far."""
        site = self._sites[name]
        return InputStatistics(
            tokens=site.tokens,
            mean_square=site.square_sum / max(1, site.count),
            absmax=site.absmax,
            count=site.count,
            grams={k: g / max(1, site.gram_count) for k, g in site.grams.items()},
            gram_count=site.gram_count,
        )

    def summary(self) -> dict[str, int]:
        """Numbers for a report: inputs, fewest and most calls, fewest tokens, tokens left out as not finite."""
        sites = list(self._sites.values())
        return {
            "inputs": len(sites),
            "fewest_calls": min((s.calls for s in sites), default=0),
            "most_calls": max((s.calls for s in sites), default=0),
            "fewest_tokens": min((s.count for s in sites), default=0),
            "dropped_tokens": sum(s.dropped for s in sites),
        }

    def save(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write everything to a safetensors file, tokens in bfloat16; a file of that name appears only when complete.

        Args:
            metadata: words about the model and the prompts, kept in the file.
        """
        tensors, counts = {}, {}
        for name in self._sites:
            found = self.statistics(name)
            tensors[f"{name}.tokens"] = found.tokens.to("cpu", torch.bfloat16)
            tensors[f"{name}.mean_square"] = found.mean_square.cpu()
            tensors[f"{name}.absmax"] = found.absmax.cpu()
            for (start, stop), gram in found.grams.items():
                tensors[f"{name}.gram.{start}.{stop}"] = gram.cpu()
            counts[name] = [found.count, found.gram_count]
        header = {**(metadata or {}), "format": FORMAT, "version": str(VERSION), "counts": json.dumps(counts)}
        partial = path.with_name(path.name + ".part")
        try:
            save_file(tensors, partial, metadata=header)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        logger.info("wrote calibration %s: %d inputs", path, len(counts))


class Calibration(Mapping[str, InputStatistics]):
    """A calibration file; statistics are read one layer at a time.

    Args:
        path: of a file that Collector.save wrote.

    Raises:
        CheckpointError: it is not one, or it is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                self.metadata = file.metadata() or {}
                self._keys = set(file.keys())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a readable calibration file ({error}). Record it again.") from error
        if self.metadata.get("format") != FORMAT:
            raise CheckpointError(
                f"{path}: not a calibration file. Choose one that Save Calibration wrote, or record one."
            )
        if self.metadata.get("version") != str(VERSION):
            raise CheckpointError(
                f"{path}: calibration version {self.metadata.get('version')}, expected {VERSION}. "
                "Update this pack, or record it again."
            )
        try:
            self._counts = {name: (int(a), int(b)) for name, (a, b) in json.loads(self.metadata["counts"]).items()}
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: its table of inputs is damaged. Record it again.") from error
        for name in self._counts:
            if not {f"{name}.{part}" for part in ("tokens", "mean_square", "absmax")} <= self._keys:
                raise CheckpointError(f"{path}: the statistics of {name} are incomplete. Record it again.")

    def __getitem__(self, name: str) -> InputStatistics:
        count, gram_count = self._counts[name]
        prefix = f"{name}.gram."
        with safe_open(self.path, framework="pt") as file:
            grams = {}
            for key in sorted(self._keys):
                if key.startswith(prefix):
                    start, stop = map(int, key.removeprefix(prefix).split("."))
                    grams[start, stop] = file.get_tensor(key)
            found = InputStatistics(
                tokens=file.get_tensor(f"{name}.tokens"),
                mean_square=file.get_tensor(f"{name}.mean_square"),
                absmax=file.get_tensor(f"{name}.absmax"),
                count=count,
                grams=grams,
                gram_count=gram_count,
            )
        width = found.channels
        shapes_fit = found.tokens.ndim == 2 and found.tokens.shape[1] == width and found.absmax.shape == (width,)
        if not shapes_fit or any(g.shape != (b - a, b - a) for (a, b), g in grams.items()):
            raise CheckpointError(f"{self.path}: the statistics of {name} do not fit each other. Record it again.")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)
