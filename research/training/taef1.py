"""The autoencoder's network, in the layout of TAEF1: 8 x 8 pixels to one place of 16 channels.

Layout and tensor names: madebyollin/taesd, as ComfyUI's comfy/taesd reads them. The weights here are our own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .small_flux import CHANNELS

_WIDTH = 64
_DOUBLINGS = 3
_DEEP = 3  # blocks at each size


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class _CodecBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [_convolution(_WIDTH, _WIDTH), nn.ReLU(), _convolution(_WIDTH, _WIDTH), nn.ReLU()]
        self.conv = nn.Sequential(*layers, _convolution(_WIDTH, _WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


def _convolution(channels: int, out_channels: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=bias)


def encoder() -> nn.Sequential:
    """Pictures (B, 3, H, W) in [0, 1] to latents (B, 16, H/8, W/8) of about unit variance."""
    layers: list[nn.Module] = [_convolution(3, _WIDTH), _CodecBlock()]
    for _ in range(_DOUBLINGS):
        layers += [_convolution(_WIDTH, _WIDTH, stride=2, bias=False), *(_CodecBlock() for _ in range(_DEEP))]
    return nn.Sequential(*layers, _convolution(_WIDTH, CHANNELS))


def decoder() -> nn.Sequential:
    """Latents to pictures, not clamped."""
    layers: list[nn.Module] = [_Clamp(), _convolution(CHANNELS, _WIDTH), nn.ReLU()]
    for _ in range(_DOUBLINGS):
        layers += [*(_CodecBlock() for _ in range(_DEEP)), nn.Upsample(scale_factor=2)]
        layers.append(_convolution(_WIDTH, _WIDTH, bias=False))
    return nn.Sequential(*layers, _CodecBlock(), _convolution(_WIDTH, 3))
