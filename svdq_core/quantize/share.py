"""Which of several processes quantizes which layers."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch

LONGEST_WAIT = timedelta(hours=48)  # for the slowest of them


@dataclass(frozen=True)
class Share:
    """One of `world` processes.

    Args:
        rank: which, from 0.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @staticmethod
    def of_torchrun() -> "Share":
        """What torchrun says about this process, joined with the others; the only one without it."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return Share()
        # gloo: nothing but waiting for each other, on any machine
        torch.distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
        return Share(torch.distributed.get_rank(), world)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            torch.distributed.barrier()

    def of(self, costs: Mapping[str, float]) -> set[str]:
        """The names that this process takes: the most expensive first, each to who has least to do so far."""
        loads, mine = [0.0] * self.world, set()
        for name in sorted(costs, key=lambda n: (-costs[n], n)):
            least = loads.index(min(loads))
            loads[least] += costs[name]
            if least == self.rank:
                mine.add(name)
        return mine
