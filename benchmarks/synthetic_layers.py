"""Linear layers with the difficulties of a diffusion transformer, drawn from a seed.

Weights: Gaussian noise, a rank-48 part with falling strengths, 0.2 % entries of four times the size, and columns that
are small where the input is large. Inputs: 256 correlated factors and noise, heavy tails over tokens, channel sizes
from a log-normal law, a few outlier channels, off centre. `fc2` inputs are the GELU of such a signal. Three more are
`out` with what trained layers have besides: `decay`, singular values that fall all the way; `shift`, tokens from eight
sampling steps with a centre each, as adaptive norms make them; `dead`, a tenth of the channels always zero.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SHAPES = {"out": (1024, 1024), "qkv": (3072, 1024), "fc2": (1024, 2048), "wide": (3072, 3072)}  # (N, K)
SHAPES |= dict.fromkeys(("decay", "shift", "dead"), SHAPES["out"])
CALIBRATION_TOKENS = {"qkv": 16384, "fc2": 24576, "wide": 24576}
CALIBRATION_TOKENS |= dict.fromkeys(("out", "decay", "shift", "dead"), 16384)
OUTLIERS = {"qkv": (10, 35), "fc2": (3, 10), "wide": (4, 20)}  # times an ordinary channel
OUTLIERS |= dict.fromkeys(("out", "decay", "shift", "dead"), (4, 14))
DECAY = 0.8  # exponent of the falling singular values
CENTRES = 8
DEAD_SHARE = 10  # one of so many channels
HELD_OUT_TOKENS = 2048
FACTORS = 256


@dataclass(frozen=True)
class SyntheticLayer:
    """A weight and tokens of its input.

    Args:
        weight: (N, K) float32 whose values bfloat16 holds.
        calibration: (T, K), held_out: (2048, K) float32 likewise.
        after_gelu: the input is the output of a GELU.
        mean, spread: (K,) float32 of each channel, before a GELU; what the shift and scale of an adaptive norm say.
    """

    name: str
    weight: Tensor
    calibration: Tensor
    held_out: Tensor
    after_gelu: bool
    mean: Tensor
    spread: Tensor

    def draw_known(self, count: int) -> Tensor:
        """Tokens as far as an input is known without data: normal, independent channels of known mean and spread."""
        drawn = torch.randn(count, len(self.mean), generator=torch.Generator().manual_seed(1)).to(self.mean.device)
        x = drawn * self.spread + self.mean
        return torch.nn.functional.gelu(x, approximate="tanh") if self.after_gelu else x


def draw_layer(name: str, seed: int, device: str = "cpu") -> SyntheticLayer:
    """One of SHAPES; the same numbers on every device."""
    g = torch.Generator().manual_seed(seed)
    (rows, columns), after_gelu = SHAPES[name], name == "fc2"
    channels = torch.exp(0.5 * torch.randn(columns, generator=g))
    hot = torch.randperm(columns, generator=g)[: 8 if after_gelu else int(torch.randint(3, 11, (1,), generator=g))]
    low, high = OUTLIERS[name]
    channels[hot] = low + (high - low) * torch.rand(len(hot), generator=g)
    if name == "dead":
        channels[::DEAD_SHARE] = 0.0
    offsets = torch.zeros(columns)
    offsets[hot] = torch.randn(len(hot), generator=g)

    strengths = torch.arange(1, 49) ** -0.7
    low_rank = (torch.randn(rows, 48, generator=g) * strengths) @ torch.randn(48, columns, generator=g)
    weight = torch.randn(rows, columns, generator=g) + 0.7 * low_rank
    weight = torch.where(torch.rand(weight.shape, generator=g) < 0.002, 4 * weight, weight)
    if name == "decay":
        weight = _decayed(weight)
    weight = 0.02 * weight / torch.where(channels > 0, channels, 1.0) ** 0.4
    mixing = torch.randn(FACTORS, columns, generator=g) * (torch.arange(1, FACTORS + 1) ** -0.5)[:, None]

    centres = _centres(name, columns, seed)

    def draw_signal(count: int) -> Tensor:
        factors = torch.randn(count, FACTORS, generator=g) @ mixing / mixing.square().sum(dim=0).sqrt()
        x = 0.8 * factors + 0.6 * torch.randn(count, columns, generator=g)
        tails = torch.randn(count, 8, generator=g).square().mean(dim=1, keepdim=True)
        x = x / tails.sqrt()
        x = x + centres[torch.arange(count) % len(centres)]
        return (x + offsets) * channels - (0.5 if after_gelu else 0.0)

    def as_input(signal: Tensor) -> Tensor:
        x = torch.nn.functional.gelu(signal, approximate="tanh") if after_gelu else signal
        return x.bfloat16().to(device, torch.float32)

    signal, held_out = draw_signal(CALIBRATION_TOKENS[name]), draw_signal(HELD_OUT_TOKENS)
    return SyntheticLayer(
        name=name,
        weight=weight.bfloat16().to(device, torch.float32),
        calibration=as_input(signal),
        held_out=as_input(held_out),
        after_gelu=after_gelu,
        mean=signal.mean(dim=0).to(device),
        spread=signal.std(dim=0).to(device),
    )


def _decayed(weight: Tensor) -> Tensor:
    """A weight of the same singular vectors and size whose singular values fall all the way."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    falling = torch.arange(1, len(values) + 1) ** -DECAY
    return left * (falling * values.norm() / falling.norm()) @ right


def _centres(name: str, columns: int, seed: int) -> Tensor:
    """(steps, K) what tokens of each step are shifted by."""
    if name != "shift":
        return torch.zeros(1, columns)
    return torch.randn(CENTRES, columns, generator=torch.Generator().manual_seed(seed + 1000))
