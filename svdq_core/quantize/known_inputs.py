"""What a model's own weights say about the inputs of its layers: statistics without any prompt or picture.

A layer behind an adaptive norm sees z * (1 + scale) + shift with z normalized; scale and shift come from the timestep
alone, or from timestep, guidance and a pooled text of unit variance, through weights at hand. So its input is drawn by
running those weights. From there it goes on: a GELU's output from the layer in front of it, an attention's output from
its values. The input of a modulation layer is known exactly but for the text.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, silu

from .statistics import InputStatistics, named_generator

TOKENS = 2048
GUIDANCE = 3.5  # what FLUX.1-dev workflows use; the embedding takes a thousand times that, as for the timestep
OWN_VALUE = 0.5  # an attention's output lies between a token's own value and the mean over tokens
FREQUENCIES = 128  # half the width of the sinusoidal timestep embedding


class KnownInputs:
    """Inputs of the layers of one block at a time.

    Args:
        weights: host tensor name -> tensor of any float dtype.
        names: all host tensor names.
        seed: of timesteps, texts and tokens.
        device: where the arithmetic runs.
    """

    def __init__(self, weights: Mapping[str, Tensor], names: list[str], seed: int, device: torch.device):
        self.weights, self.names, self.device = weights, set(names), device
        self.seed = seed

    def of_block(self, block: str) -> dict[str, InputStatistics]:
        """Statistics by host module name, for those layers of a block ("double_blocks.3") whose inputs are known."""
        generator = named_generator(self.seed, f"{block} inputs")
        return {name: InputStatistics.from_tokens(x) for name, x in self._inputs(block, generator)}

    def _inputs(self, block: str, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        raise NotImplementedError

    def _run(self, module: str, x: Tensor) -> Tensor:
        bias = self._tensor(f"{module}.bias") if f"{module}.bias" in self.names else None
        return linear(x, self._tensor(f"{module}.weight"), bias)

    def _tensor(self, name: str) -> Tensor:
        return self.weights[name].to(self.device, torch.float32)

    def _normal(self, generator: torch.Generator, columns: int) -> Tensor:
        return torch.randn(TOKENS, columns, generator=generator).to(self.device)

    def _embed(self, first: str, second: str, time: Tensor) -> Tensor:
        """A sinusoidal embedding of numbers up to about a thousand, through its two layers."""
        frequencies = torch.exp(-math.log(10000) * torch.arange(FREQUENCIES, device=self.device) / FREQUENCIES)
        angles = time[:, None] * frequencies
        return self._run(second, silu(self._run(first, torch.cat((angles.cos(), angles.sin()), dim=1))))

    def _times(self, generator: torch.Generator) -> Tensor:
        return 1000 * torch.rand(TOKENS, generator=generator).to(self.device)


class FluxInputs(KnownInputs):
    """FLUX: every layer of every block."""

    def _inputs(self, block: str, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        condition = silu(self._condition(generator))
        if block.startswith("double_blocks"):
            for stream in ("img", "txt"):
                yield from self._stream(f"{block}.{stream}", condition, generator)
            return
        modulation = f"{block}.modulation.lin"
        yield modulation, condition
        shift, scale, _ = self._run(modulation, condition).chunk(3, dim=1)
        x = self._modulated(shift, scale, generator)
        yield f"{block}.linear1", x
        hidden = x.shape[1]
        out = self._run(f"{block}.linear1", x)
        values, mlp = out[:, 2 * hidden : 3 * hidden], out[:, 3 * hidden :]
        yield f"{block}.linear2", torch.cat((_attended(values), gelu(mlp, approximate="tanh")), dim=1)

    def _stream(self, prefix: str, condition: Tensor, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        yield f"{prefix}_mod.lin", condition
        chunks = self._run(f"{prefix}_mod.lin", condition).chunk(6, dim=1)
        x = self._modulated(chunks[0], chunks[1], generator)
        yield f"{prefix}_attn.qkv", x
        yield f"{prefix}_attn.proj", _attended(self._run(f"{prefix}_attn.qkv", x).chunk(3, dim=1)[2])
        x = self._modulated(chunks[3], chunks[4], generator)
        yield f"{prefix}_mlp.0", x
        yield f"{prefix}_mlp.2", gelu(self._run(f"{prefix}_mlp.0", x), approximate="tanh")

    def _condition(self, generator: torch.Generator) -> Tensor:
        """The vector that all modulations see before their SiLU: (TOKENS, hidden)."""
        condition = self._embed("time_in.in_layer", "time_in.out_layer", self._times(generator))
        if "guidance_in.in_layer.weight" in self.names:
            guidance = torch.full((TOKENS,), 1000 * GUIDANCE, device=self.device)
            condition = condition + self._embed("guidance_in.in_layer", "guidance_in.out_layer", guidance)
        text = self._normal(generator, self.weights["vector_in.in_layer.weight"].shape[1])
        return condition + self._run("vector_in.out_layer", silu(self._run("vector_in.in_layer", text)))

    def _modulated(self, shift: Tensor, scale: Tensor, generator: torch.Generator) -> Tensor:
        return self._normal(generator, shift.shape[1]) * (1 + scale) + shift


class PixArtInputs(KnownInputs):
    """PixArt: self-attention and MLP of every block; cross-attention reads the residual stream, which is not known."""

    def _inputs(self, block: str, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        time = self._embed("t_embedder.mlp.0", "t_embedder.mlp.2", self._times(generator))
        table = self._run("t_block.1", silu(time)).unflatten(1, (6, -1))
        chunks = (table + self._tensor(f"{block}.scale_shift_table")).unbind(dim=1)
        x = self._normal(generator, time.shape[1]) * (1 + chunks[1]) + chunks[0]
        yield f"{block}.attn.qkv", x
        yield f"{block}.attn.proj", _attended(self._run(f"{block}.attn.qkv", x).chunk(3, dim=1)[2])
        x = self._normal(generator, time.shape[1]) * (1 + chunks[4]) + chunks[3]
        yield f"{block}.mlp.fc1", x
        yield f"{block}.mlp.fc2", gelu(self._run(f"{block}.mlp.fc1", x), approximate="tanh")


def _attended(values: Tensor) -> Tensor:
    return OWN_VALUE * values + (1 - OWN_VALUE) * values.mean(dim=0)


KNOWN_INPUTS = {"flux": FluxInputs, "pixart": PixArtInputs}
