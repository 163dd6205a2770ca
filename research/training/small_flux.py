"""FLUX as the host has it, small and by itself: the same tensor names and arithmetic, for training without the host.

Layout: the Flux class of ComfyUI, comfy/ldm/flux. Only what this model uses is here: guidance, no reference latents.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...demo.scenes import CONTEXT_WIDTH, POOLED_WIDTH

CHANNELS = 16  # of the autoencoder's latents
_HEAD = 128  # width of an attention head; the host reads it from the norm's size
_AXES = (16, 56, 56)  # of a head's 128 values: how many turn with the index, the row, the column
_WAVES = 256  # width of the sinusoidal embedding of time and guidance


@dataclass(frozen=True)
class Shape:
    """Sizes of a FLUX; the default is the demo's, 8.2 million parameters."""

    hidden: int = 256
    double_blocks: int = 2
    single_blocks: int = 3


class _Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(_HEAD))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (_HEAD,), self.scale.float(), 1e-6)


class _QueryKeyNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query_norm = _Norm()
        self.key_norm = _Norm()

    def forward(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split (B, L, 3 D) into normed queries, normed keys and values, each (B, heads, L, 128)."""
        query, key, value = qkv.unflatten(-1, (3, -1, _HEAD)).permute(2, 0, 3, 1, 4)
        return self.query_norm(query), self.key_norm(key), value


class _Embedder(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(width, hidden)
        self.out_layer = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class _Modulation(nn.Module):
    def __init__(self, hidden: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.lin = nn.Linear(hidden, parts * hidden)

    def forward(self, vector: Tensor) -> tuple[Tensor, ...]:
        return self.lin(F.silu(vector))[:, None].chunk(self.parts, -1)


class _SelfAttention(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.norm = _QueryKeyNorm()
        self.proj = nn.Linear(hidden, hidden)


class _DoubleBlock(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        for stream in ("img", "txt"):
            mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU("tanh"), nn.Linear(4 * hidden, hidden))
            self.add_module(f"{stream}_mod", _Modulation(hidden, 6))
            self.add_module(f"{stream}_attn", _SelfAttention(hidden))
            self.add_module(f"{stream}_mlp", mlp)

    def forward(self, image: Tensor, text: Tensor, vector: Tensor, angles: tuple[Tensor, Tensor]):
        image_mod, text_mod = self.img_mod(vector), self.txt_mod(vector)
        image_qkv = self.img_attn.norm(self.img_attn.qkv(_modulate(image, *image_mod[:2])))
        text_qkv = self.txt_attn.norm(self.txt_attn.qkv(_modulate(text, *text_mod[:2])))
        query, key, value = (torch.cat(pair, 2) for pair in zip(text_qkv, image_qkv, strict=True))
        attended = _attend(query, key, value, angles)
        words = text.shape[1]
        image = image + image_mod[2] * self.img_attn.proj(attended[:, words:])
        image = image + image_mod[5] * self.img_mlp(_modulate(image, *image_mod[3:5]))
        text = text + text_mod[2] * self.txt_attn.proj(attended[:, :words])
        text = text + text_mod[5] * self.txt_mlp(_modulate(text, *text_mod[3:5]))
        return image, text


class _SingleBlock(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(hidden, 7 * hidden)
        self.linear2 = nn.Linear(5 * hidden, hidden)
        self.norm = _QueryKeyNorm()
        self.modulation = _Modulation(hidden, 3)

    def forward(self, x: Tensor, vector: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        shift, scale, gate = self.modulation(vector)
        hidden = x.shape[-1]
        qkv, mlp = self.linear1(_modulate(x, shift, scale)).split([3 * hidden, 4 * hidden], -1)
        query, key, value = self.norm(qkv)
        attended = _attend(query, key, value, angles)
        return x + gate * self.linear2(torch.cat([attended, F.gelu(mlp, approximate="tanh")], -1))


class _LastLayer(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, 4 * CHANNELS)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        return self.linear(_modulate(x, *self.adaLN_modulation(vector)[:, None].chunk(2, -1)))


class Flux(nn.Module):
    """The network. It starts as zero: gates and the last layer do."""

    def __init__(self, shape: Shape | None = None) -> None:
        super().__init__()
        shape = shape or Shape()
        hidden = shape.hidden
        self.img_in = nn.Linear(4 * CHANNELS, hidden)
        self.time_in = _Embedder(_WAVES, hidden)
        self.vector_in = _Embedder(POOLED_WIDTH, hidden)
        self.guidance_in = _Embedder(_WAVES, hidden)
        self.txt_in = nn.Linear(CONTEXT_WIDTH, hidden)
        self.double_blocks = nn.ModuleList(_DoubleBlock(hidden) for _ in range(shape.double_blocks))
        self.single_blocks = nn.ModuleList(_SingleBlock(hidden) for _ in range(shape.single_blocks))
        self.final_layer = _LastLayer(hidden)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, _Modulation):
                nn.init.zeros_(module.lin.weight)
            elif isinstance(module, _Embedder):
                nn.init.normal_(module.in_layer.weight, std=0.02)
                nn.init.normal_(module.out_layer.weight, std=0.02)
        nn.init.zeros_(self.final_layer.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        context: Tensor,
        pooled: Tensor,
        guidance: Tensor,
        *,
        angles: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Velocity (noise minus picture) at noisy latents.

        Args:
            x: (B, 16, H, W), H and W even.
            time: (B,) share of noise, 0 to 1.
            context: (B, L, CONTEXT_WIDTH); pooled: (B, POOLED_WIDTH).
            guidance: (B,), dimensionless.
            angles: of `rotary_angles` for H/2, W/2 and L.
        """
        batch, channels, height, width = x.shape
        dtype = self.img_in.weight.dtype
        patches = x.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        image = self.img_in(patches.reshape(batch, height * width // 4, 4 * channels))
        vector = self.time_in(_waves(time).to(dtype)) + self.guidance_in(_waves(guidance).to(dtype))
        vector = vector + self.vector_in(pooled)
        text = self.txt_in(context)
        for block in self.double_blocks:
            image, text = block(image, text, vector, angles)
        both = torch.cat([text, image], 1)
        for block in self.single_blocks:
            both = block(both, vector, angles)
        out = self.final_layer(both[:, text.shape[1] :], vector)
        out = out.view(batch, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return out.reshape(batch, channels, height, width)


def rotary_angles(rows: int, columns: int, words: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Cosines and sines (words + rows * columns, 64) of the rotary embedding; words all stand at place 0."""
    places = torch.zeros(words + rows * columns, 3, dtype=torch.float64)
    places[words:, 1] = torch.arange(rows).repeat_interleave(columns)
    places[words:, 2] = torch.arange(columns).repeat(rows)
    steps = [10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width) for width in _AXES]
    angles = torch.cat([places[:, axis : axis + 1] * step for axis, step in enumerate(steps)], 1)
    return angles.cos().float().to(device), angles.sin().float().to(device)


def _attend(query: Tensor, key: Tensor, value: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    query, key = (_rotate(part, *angles).to(value.dtype) for part in (query, key))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([cosine * even - sine * odd, sine * even + cosine * odd], -1).flatten(-2)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _waves(value: Tensor) -> Tensor:
    """Sinusoidal embedding (B, 256) of a number, times 1000 as the host has it."""
    rates = torch.exp(-math.log(10000) * torch.arange(_WAVES // 2, device=value.device) / (_WAVES // 2))
    angle = 1000.0 * value.float()[:, None] * rates
    return torch.cat([angle.cos(), angle.sin()], -1)
