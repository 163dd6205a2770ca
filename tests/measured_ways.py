"""Ways to compute a layer for tests of measuring: the reference under other names, without a GPU."""

import torch

from svdquant_pack.kernels.paths import on_cpu
from svdquant_pack.kernels.paths.path import Path

MACHINE = {"gpu": "Some GPU", "chip": "sm_89", "driver": "580.65", "torch": "2.9", "triton": "3.5", "pack": "1.0"}


class Way(Path):
    """The reference under another name, which may fail."""

    serves = frozenset()

    def __init__(self, name: str, fails: bool = False):
        self.name, self.fails = name, fails

    def run(self, call) -> torch.Tensor:
        if self.fails:
            raise RuntimeError("no such instruction")
        return on_cpu.compute(call)
