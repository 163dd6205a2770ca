"""The blocks of FLUX.1 and PixArt written down a second time, run on noise: a reference for what ComfyUI's own do.

A few images of noise, with random texts at times between 0 and 1, go through the model block by block, in float32; what
each Linear sees is its statistics.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, rms_norm, scaled_dot_product_attention, silu

from svdquant_pack.svdq_core.quantize.statistics import InputStatistics, named_generator

IMAGES = 16
SIDE = 16  # an image is SIDE x SIDE tokens
TEXT_TOKENS = 64
CONDITIONS = 2048  # times and texts behind the statistics of modulation layers
GUIDANCE = 3.5  # what FLUX.1-dev workflows use; the embedding takes a thousand times that, as for the time
WEAKEST_TEXT = 0.1  # text encoders differ in the size of their output: texts get sizes from this to 1
PIXELS = 512  # of PixArt's images: its sizes below are rounded to nothing
FREQUENCIES = 128  # half the width of the sinusoidal embeddings
EPSILON = 1e-6  # of every norm

Site = tuple[str, Tensor]  # a host Linear and its input (M, K)


class ModelInputs(NamedTuple):
    """Some images of noise, as a model takes them.

    Args:
        noise: (B, SIDE^2, channels) patches. text: (B, TEXT_TOKENS, channels). times: (B,) 0...1000.
        pooled: (B, channels) of the pooled text; no channels where a model takes none.
    """

    noise: Tensor
    text: Tensor
    times: Tensor
    pooled: Tensor


class KnownInputs:
    """Inputs of the layers of one block after the other.

    Blocks may be asked for in any order; in the model's own order each runs once.

    Args:
        weights: host tensor name -> tensor of any float dtype.
        names: all host tensor names.
        seed: of noise, times and texts.
        device: where the arithmetic runs.
    """

    kinds: tuple[str, ...] = ()  # of blocks, in the order in which they run
    image_input = text_input = pooled_input = ""  # modules that take noise, text and pooled text

    def __init__(self, weights: Mapping[str, Tensor], names: list[str], seed: int, device: torch.device):
        self.weights, self.names, self.seed, self.device = weights, set(names), seed, device
        self.order = []
        for kind in self.kinds:
            count = len({name.split(".")[1] for name in names if name.startswith(f"{kind}.")})
            self.order += [f"{kind}.{index}" for index in range(count)]
        self._next = len(self.order)  # nothing has run

    @torch.no_grad()
    def of_block(self, block: str) -> dict[str, InputStatistics]:
        """Statistics by host module name, of those layers of a block ("double_blocks.3") whose inputs stay finite."""
        wanted = self.order.index(block)
        if wanted < self._next:
            self._start(self.draw())
            self._next = 0
        found = {}
        while self._next <= wanted:
            for name, x in self._block(self.order[self._next]):
                if self._next == wanted and bool(torch.isfinite(x).all()):
                    found[name] = InputStatistics.from_tokens(x)
            self._next += 1
        return found

    def close(self) -> None:
        """Nothing more will be asked for; see BlockInputs in whole_model.py."""

    def draw(self) -> ModelInputs:
        """What the model runs on: the same numbers for the same seed."""
        self._generator = named_generator(self.seed, "known inputs")
        noise = self._normal(IMAGES, SIDE**2, self._channels(self.image_input))
        sizes = WEAKEST_TEXT ** torch.rand(IMAGES, 1, 1, generator=self._generator)
        text = self._normal(IMAGES, TEXT_TOKENS, self._channels(self.text_input)) * sizes.to(self.device)
        return ModelInputs(noise, text, self._times(IMAGES), self._pooled(IMAGES))

    def _channels(self, module: str) -> int:
        return self.weights[f"{module}.weight"][0].numel() if module else 0

    def _pooled(self, count: int) -> Tensor:
        return self._normal(count, self._channels(self.pooled_input))

    def _start(self, inputs: ModelInputs) -> None:
        """Set the state in front of the first block."""
        raise NotImplementedError

    def _block(self, block: str) -> Iterator[Site]:
        """Advance the state by a block, with the input of each Linear on the way."""
        raise NotImplementedError

    def _apply(self, module: str, x: Tensor) -> Tensor:
        bias = self._tensor(f"{module}.bias") if f"{module}.bias" in self.names else None
        return linear(x, self._tensor(f"{module}.weight").flatten(1), bias)

    def _tensor(self, name: str) -> Tensor:
        return self.weights[name].to(self.device, torch.float32)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self.device)

    def _times(self, count: int) -> Tensor:
        """One time from each of `count` equal parts of 0...1000, shuffled."""
        times = (
            torch.randperm(count, generator=self._generator) + torch.rand(count, generator=self._generator)
        ) / count
        return 1000 * times.to(self.device)

    def _embed(self, first: str, second: str, numbers: Tensor) -> Tensor:
        """Sinusoidal embedding of numbers up to about a thousand, through its two layers: (B,) -> (B, H)."""
        frequencies = torch.exp(-math.log(10000) * torch.arange(FREQUENCIES, device=self.device) / FREQUENCIES)
        angles = numbers[:, None] * frequencies
        return self._apply(second, silu(self._apply(first, torch.cat((angles.cos(), angles.sin()), dim=1))))


class FluxInputs(KnownInputs):
    """FLUX.1; source: BFL's model.py and layers.py."""

    kinds = ("double_blocks", "single_blocks")
    image_input, text_input, pooled_input = "img_in", "txt_in", "vector_in.in_layer"
    axes, theta = (16, 56, 56), 10000  # of the rotary embedding

    def _start(self, inputs: ModelInputs) -> None:
        self.condition = silu(self._condition(inputs.times, inputs.pooled))[:, None]
        self.many_conditions = silu(self._condition(self._times(CONDITIONS), self._pooled(CONDITIONS)))
        self.img, self.txt = self._apply(self.image_input, inputs.noise), self._apply(self.text_input, inputs.text)
        ids = torch.zeros(TEXT_TOKENS + SIDE**2, 3, device=self.device)
        ids[TEXT_TOKENS:, 1] = torch.arange(SIDE, device=self.device).repeat_interleave(SIDE)
        ids[TEXT_TOKENS:, 2] = torch.arange(SIDE, device=self.device).repeat(SIDE)
        angles = [
            ids[:, i : i + 1] * self.theta ** -(torch.arange(0, size, 2, device=self.device) / size)
            for i, size in enumerate(self.axes)
        ]
        self.rotation = torch.cat(angles, dim=1)  # (tokens, head width / 2)

    def _condition(self, times: Tensor, pooled: Tensor) -> Tensor:
        """The vector that all modulations see before their SiLU: (B, H)."""
        condition = self._embed("time_in.in_layer", "time_in.out_layer", times)
        if "guidance_in.in_layer.weight" in self.names:
            guidance = torch.full_like(times, 1000 * GUIDANCE)
            condition = condition + self._embed("guidance_in.in_layer", "guidance_in.out_layer", guidance)
        return condition + self._apply("vector_in.out_layer", silu(self._apply(self.pooled_input, pooled)))

    def _block(self, block: str) -> Iterator[Site]:
        return self._double(block) if block.startswith("double") else self._single(block)

    def _double(self, block: str) -> Iterator[Site]:
        streams, heads = {"txt": self.txt, "img": self.img}, []
        chunks = {}
        for name, x in streams.items():
            yield f"{block}.{name}_mod.lin", self.many_conditions
            chunks[name] = self._apply(f"{block}.{name}_mod.lin", self.condition).chunk(6, dim=-1)
            x = _modulate(x, *chunks[name][:2])
            yield f"{block}.{name}_attn.qkv", x.flatten(0, 1)
            heads.append(self._heads(self._apply(f"{block}.{name}_attn.qkv", x), f"{block}.{name}_attn.norm"))
        attended = self._attend(*(torch.cat(parts, dim=2) for parts in zip(*heads, strict=True)))
        for name, out in zip(streams, attended.split([TEXT_TOKENS, SIDE**2], dim=1), strict=True):
            x, (_, _, gate, mlp_shift, mlp_scale, mlp_gate) = streams[name], chunks[name]
            yield f"{block}.{name}_attn.proj", out.flatten(0, 1)
            x = x + gate * self._apply(f"{block}.{name}_attn.proj", out)
            inner = _modulate(x, mlp_shift, mlp_scale)
            yield f"{block}.{name}_mlp.0", inner.flatten(0, 1)
            inner = gelu(self._apply(f"{block}.{name}_mlp.0", inner), approximate="tanh")
            yield f"{block}.{name}_mlp.2", inner.flatten(0, 1)
            streams[name] = x + mlp_gate * self._apply(f"{block}.{name}_mlp.2", inner)
        self.txt, self.img = streams["txt"], streams["img"]

    def _single(self, block: str) -> Iterator[Site]:
        x = torch.cat((self.txt, self.img), dim=1)
        hidden = x.shape[-1]
        yield f"{block}.modulation.lin", self.many_conditions
        shift, scale, gate = self._apply(f"{block}.modulation.lin", self.condition).chunk(3, dim=-1)
        inner = _modulate(x, shift, scale)
        yield f"{block}.linear1", inner.flatten(0, 1)
        inner = self._apply(f"{block}.linear1", inner)
        attended = self._attend(*self._heads(inner[..., : 3 * hidden], f"{block}.norm"))
        inner = torch.cat((attended, gelu(inner[..., 3 * hidden :], approximate="tanh")), dim=-1)
        yield f"{block}.linear2", inner.flatten(0, 1)
        x = x + gate * self._apply(f"{block}.linear2", inner)
        self.txt, self.img = x[:, :TEXT_TOKENS], x[:, TEXT_TOKENS:]

    def _heads(self, qkv: Tensor, norm: str) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys normalized, and values: (B, heads, L, width) each."""
        query_norm, key_norm = (self._norm_weight(f"{norm}.{name}_norm") for name in ("query", "key"))
        q, k, v = qkv.unflatten(-1, (3, -1, len(query_norm))).permute(2, 0, 3, 1, 4)
        width = (len(query_norm),)
        return rms_norm(q, width, query_norm, EPSILON), rms_norm(k, width, key_norm, EPSILON), v

    def _norm_weight(self, module: str) -> Tensor:
        return self._tensor(f"{module}.weight" if f"{module}.weight" in self.names else f"{module}.scale")

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cos, sin = self.rotation.cos(), self.rotation.sin()

        def rotate(x: Tensor) -> Tensor:
            even, odd = x[..., 0::2], x[..., 1::2]
            return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)

        return scaled_dot_product_attention(rotate(q), rotate(k), v).transpose(1, 2).flatten(2)


class PixArtInputs(KnownInputs):
    """PixArt-Sigma and -Alpha; source: the authors' PixArtMS."""

    kinds = ("blocks",)
    image_input, text_input = "x_embedder.proj", "y_embedder.y_proj.fc1"
    heads = 16
    spacing = 2  # every second of the 32 tokens in each direction that an image of PIXELS has

    def _start(self, inputs: ModelInputs) -> None:
        x = self._apply(self.image_input, inputs.noise)
        self.x = x + self._positions(x.shape[-1])
        time = self._embed("t_embedder.mlp.0", "t_embedder.mlp.2", inputs.times)
        if "csize_embedder.mlp.0.weight" in self.names:
            size = self._embed("csize_embedder.mlp.0", "csize_embedder.mlp.2", torch.full_like(inputs.times, PIXELS))
            ratio = self._embed("ar_embedder.mlp.0", "ar_embedder.mlp.2", torch.ones_like(inputs.times))
            time = time + torch.cat((size, size, ratio), dim=1)
        self.table = self._apply("t_block.1", silu(time)).unflatten(1, (6, -1))
        text = gelu(self._apply(self.text_input, inputs.text), approximate="tanh")
        self.text = self._apply("y_embedder.y_proj.fc2", text)

    def _positions(self, channels: int) -> Tensor:
        """Sines and cosines of column, then of row: (SIDE^2, channels)."""
        omega = 10000 ** -(torch.arange(channels // 4, device=self.device) / (channels // 4))
        angles = self.spacing * torch.arange(SIDE, device=self.device)[:, None] * omega
        line = torch.cat((angles.sin(), angles.cos()), dim=1)
        return torch.cat((line.repeat(SIDE, 1), line.repeat_interleave(SIDE, dim=0)), dim=1)

    def _block(self, block: str) -> Iterator[Site]:
        chunks = (self._tensor(f"{block}.scale_shift_table") + self.table)[:, :, None].unbind(dim=1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = chunks
        inner = _modulate(self.x, shift, scale)
        yield f"{block}.attn.qkv", inner.flatten(0, 1)
        out = self._attend(*self._apply(f"{block}.attn.qkv", inner).chunk(3, dim=-1))
        yield f"{block}.attn.proj", out.flatten(0, 1)
        x = self.x + gate * self._apply(f"{block}.attn.proj", out)
        yield f"{block}.cross_attn.q_linear", x.flatten(0, 1)
        query = self._apply(f"{block}.cross_attn.q_linear", x)
        out = self._attend(query, *self._apply(f"{block}.cross_attn.kv_linear", self.text).chunk(2, dim=-1))
        yield f"{block}.cross_attn.proj", out.flatten(0, 1)
        x = x + self._apply(f"{block}.cross_attn.proj", out)
        inner = _modulate(x, mlp_shift, mlp_scale)
        yield f"{block}.mlp.fc1", inner.flatten(0, 1)
        inner = gelu(self._apply(f"{block}.mlp.fc1", inner), approximate="tanh")
        yield f"{block}.mlp.fc2", inner.flatten(0, 1)
        self.x = x + mlp_gate * self._apply(f"{block}.mlp.fc2", inner)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale) + shift


KNOWN_INPUTS = {"flux": FluxInputs, "pixart": PixArtInputs}
