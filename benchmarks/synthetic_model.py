"""16-bit FLUX.1 and PixArt files of any size with random weights, under the host's names, and recorded inputs for them.

Weights are Gaussian, their columns of unequal size; tensors are drawn on the GPU where there is one, one at a time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import gelu

from svdquant_pack.svdq_core.checkpoint.output import Output
from svdquant_pack.svdq_core.checkpoint.safetensors_write import layout, write_block
from svdquant_pack.svdq_core.models import ARCHITECTURES
from svdquant_pack.svdq_core.quantize.layout_plan import plan_for
from svdquant_pack.svdq_core.quantize.statistics import InputStatistics

TEXT, POOLED, PATCH = 4096, 768, 64
SAMPLES, TOKENS_PER_SAMPLE, HESSIAN_TOKENS, KEPT_TOKENS = 64, 4608, 1024, 1024  # what a calibration of 64 samples holds


@dataclass(frozen=True)
class Size:
    """How large a model is.

    Args:
        family: "flux" or "pixart".
        width: of the residual stream, a multiple of 128.
        blocks: how many of each kind, in the order of the architecture.
    """

    family: str
    width: int
    blocks: tuple[int, ...]

    @property
    def counts(self) -> dict[str, int]:
        kinds = [block.host for block in ARCHITECTURES[self.family].blocks]
        return dict(zip(kinds, self.blocks, strict=True))


SIZES = {"FLUX.1-dev": Size("flux", 3072, (19, 38)), "PixArt-Sigma": Size("pixart", 1152, (28,))}
OUTSIDE = {
    "flux": {
        "img_in": (1, PATCH),
        "txt_in": (1, TEXT),
        "time_in.in_layer": (1, 256),
        "time_in.out_layer": (1, 0),
        "guidance_in.in_layer": (1, 256),
        "guidance_in.out_layer": (1, 0),
        "vector_in.in_layer": (1, POOLED),
        "vector_in.out_layer": (1, 0),
        "final_layer.adaLN_modulation.1": (2, 0),
    },
    "pixart": {
        "t_block.1": (6, 0),
        "t_embedder.mlp.0": (1, 256),
        "t_embedder.mlp.2": (1, 0),
        "y_embedder.y_proj.fc1": (1, TEXT),
        "y_embedder.y_proj.fc2": (1, 0),
    },
}  # module -> (rows in widths, columns; 0 for the width)


def shapes_of(size: Size) -> dict[str, tuple[int, ...]]:
    """Host tensor -> shape."""
    architecture, width = ARCHITECTURES[size.family], size.width
    shapes: dict[str, tuple[int, ...]] = {}
    for name, linear in architecture.linears(size.counts):
        shapes[f"{name}.weight"] = (linear.shape[0] * width, linear.shape[1] * width)
        shapes[f"{name}.bias"] = (linear.shape[0] * width,)
    for block in architecture.blocks:
        for index in range(size.counts[block.host]):
            for name in block.plain:
                expected = architecture.shape_of(f"{block.host}.{index}.{name}", width)
                shapes[f"{block.host}.{index}.{name}"] = tuple(n or 128 for n in expected or ())
    for module, (rows, columns) in OUTSIDE[size.family].items():
        shapes[f"{module}.weight"], shapes[f"{module}.bias"] = (rows * width, columns or width), (rows * width,)
    if size.family == "flux":
        shapes["final_layer.linear.weight"], shapes["final_layer.linear.bias"] = (PATCH, width), (PATCH,)
    else:
        shapes["x_embedder.proj.weight"], shapes["x_embedder.proj.bias"] = (width, 4, 2, 2), (width,)
        shapes["final_layer.linear.weight"], shapes["final_layer.linear.bias"] = (32, width), (32,)
        shapes["final_layer.scale_shift_table"] = (2, width)
    return shapes


def write_model(path: Path, size: Size, device: torch.device) -> int:
    """Write a model file; how many bytes it has."""
    torch.manual_seed(0)
    outputs = [Output(name, shape, torch.bfloat16, tuple) for name, shape in shapes_of(size).items()]
    header, offsets, total = layout(outputs, {})
    with path.open("wb") as file:
        file.write(header)
        for output in sorted(outputs, key=lambda o: offsets[o.name]):
            write_block(file, _draw(output.name, output.shape, device))
    return len(header) + total


def _draw(name: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    if name.endswith("_norm.weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    values = torch.randn(shape, dtype=torch.bfloat16, device=device)
    if len(shape) == 1 or "table" in name:
        return values * 0.02
    columns = torch.exp(0.3 * torch.randn(shape[-1], device=device)).bfloat16()
    small = 0.1 if "mod" in name else 1.0  # gates and scales of trained models are small
    return values.mul_(columns * (small * values[0].numel() ** -0.5))


class SyntheticCalibration(Mapping[str, InputStatistics]):
    """What a calibration of a model of this size holds, drawn: one input for each kind of layer, on the CPU."""

    def __init__(self, size: Size, device: torch.device):
        self.architecture, self.device = ARCHITECTURES[size.family], device
        self.names = [name for name, _ in self.architecture.linears(size.counts)]
        self.width, self._kinds = size.width, {}

    def __getitem__(self, name: str) -> InputStatistics:
        linear = self.architecture.find_linear(name)
        assert linear is not None
        parts = plan_for(linear, *(n * self.width for n in linear.shape)).parts
        spans = tuple(dict.fromkeys((*part.columns, part.after_gelu) for part in parts))
        kind = spans, bool(linear.modulation_chunks)
        if kind not in self._kinds:
            self._kinds[kind] = self._make(*kind)
        return self._kinds[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def _make(self, spans: tuple[tuple[int, int, bool], ...], modulation: bool) -> InputStatistics:
        pieces, hessians = [], {}
        for start, stop, after_gelu in spans:
            width = stop - start
            mixing = torch.randn(width, width, device=self.device) / width**0.5
            x = torch.randn(2 * width, width, device=self.device)
            x = (x + x @ mixing) * torch.exp(0.5 * torch.randn(width, device=self.device))
            x = gelu(x, approximate="tanh") if after_gelu else x
            if not modulation:
                hessians[start, stop] = (x.T @ x / len(x)).cpu()
            pieces.append(x[:KEPT_TOKENS])
        tokens = torch.cat([piece[: min(len(p) for p in pieces)] for piece in pieces], dim=1)
        return InputStatistics(
            tokens=tokens.bfloat16().cpu(),
            mean_square=tokens.square().mean(dim=0).cpu(),
            absmax=tokens.abs().amax(dim=0).cpu(),
            count=SAMPLES * TOKENS_PER_SAMPLE,
            hessians=hessians,
            hessian_count=0 if modulation else SAMPLES * HESSIAN_TOKENS,
        )
