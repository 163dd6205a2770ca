"""A model file of any family and size that is no file: random weights in main memory, of which tensors are pieces."""

import math
import time
import zlib
from pathlib import Path

import torch

from svdquant_pack.svdq_core.checkpoint import Checkpoint
from svdquant_pack.svdq_core.checkpoint.output import Output
from svdquant_pack.svdq_core.checkpoint.stream import write_stream

BANK = 1 << 26  # numbers, for each width of weights


def random_checkpoint(family, config: dict, device: str) -> Checkpoint:
    """A Checkpoint without a file: random weights of a family, drawn on the device whenever they are read."""

    class RandomCheckpoint(Checkpoint):
        def __init__(self):
            self.path, self.base, self.flags = Path("random.safetensors"), None, {}
            self.metadata, self.shapes = dict(family.metadata or {}), family.shapes(config)
            self.banks: dict[float, torch.Tensor] = {}

        def __getitem__(self, name):
            shape = self.shapes[name]
            count = math.prod(shape)
            scale = math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.02
            bank = self.banks.get(scale)
            if bank is None or len(bank) < count:
                size = max(count, BANK if len(shape) > 1 and count > BANK >> 8 else count)
                generator = torch.Generator(device).manual_seed(len(self.banks))
                drawn = torch.randn(size, generator=generator, device=device, dtype=torch.bfloat16)
                bank = self.banks[scale] = (drawn * scale).cpu()
            start = zlib.crc32(name.encode()) % (len(bank) - count + 1)
            found = bank[start : start + count].view(shape)
            return found + 1 if len(shape) < 2 and "norm" in name and not name.endswith("bias") else found

        def __iter__(self):
            return iter(self.shapes)

        def __len__(self):
            return len(self.shapes)

        def __contains__(self, name):
            return name in self.shapes

        def dtype(self, name):
            return "BF16"

        def shape(self, name):
            return self.shapes[name]

        def sidecar(self):
            return ""

    return RandomCheckpoint()


def write_file(checkpoint: Checkpoint, path: Path) -> tuple[Checkpoint, float]:
    """The same weights in a file, and how long it took."""
    started = time.perf_counter()
    shapes = [(name, checkpoint.shape(name)) for name in checkpoint]
    outputs = [Output(n, tuple(s), torch.bfloat16, lambda n=n: [checkpoint[n]]) for n, s in shapes]
    write_stream(path, outputs, checkpoint.metadata, outputs)
    return Checkpoint(path), time.perf_counter() - started
