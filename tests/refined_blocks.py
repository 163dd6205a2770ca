"""A tiny model of residual blocks outside ComfyUI: what quantizes, runs and refines it takes under a second."""

from contextlib import nullcontext

import torch
from torch.nn.functional import gelu, linear

from svdquant_pack.svdq_core.models import Architecture
from svdquant_pack.svdq_core.quantize.model_plan import ModelPlan, PlannedLayer
from svdquant_pack.svdq_core.quantize.part_plan import LayerPlan
from svdquant_pack.svdq_core.quantize.spec import QuantSpec
from svdquant_pack.svdq_core.quantize.statistics import InputStatistics
from svdquant_pack.svdq_core.quantize.to_file import QuantizeJob

WIDTH, BLOCKS, SAMPLES, TOKENS = 128, 2, 8, 256
KIND = "ResidualModel"


def make_weights(seed=0):
    """up and down of each block, and a tensor outside."""
    g = torch.Generator().manual_seed(seed)
    weights = {"outside": torch.randn(4, generator=g).bfloat16()}
    for block in range(BLOCKS):
        for name, (rows, columns) in (("up", (2 * WIDTH, WIDTH)), ("down", (WIDTH, 2 * WIDTH))):
            weight = torch.randn(rows, columns, generator=g) * columns**-0.5
            weight[:, torch.randperm(columns, generator=g)[:8]] *= 4
            weights[f"blocks.{block}.{name}.weight"] = weight.bfloat16()
            weights[f"blocks.{block}.{name}.bias"] = 0.1 * torch.randn(rows, generator=g).bfloat16()
    return weights


def plan():
    layers = {}
    for block in range(BLOCKS):
        for name, parts in (
            ("up", LayerPlan.whole(2 * WIDTH, WIDTH)),
            ("down", LayerPlan.whole(WIDTH, 2 * WIDTH, after_gelu=True)),
        ):
            full = f"blocks.{block}.{name}"
            rows, columns = parts.parts[0].rows[1], parts.parts[0].columns[1]
            layers[full] = PlannedLayer(full, f"blocks.{block}", rows, columns, parts, full)
    return ModelPlan(KIND, sum(layer.weights for layer in layers.values()), layers)


class ResidualRuns:
    """BlockRuns of it on tokens whose channels are correlated, as those of real models are."""

    def __init__(self, weights, seed=1):
        g = torch.Generator().manual_seed(seed)
        mix = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(7)) * WIDTH**-0.5
        mix = mix * torch.linspace(0.2, 3, WIDTH)
        self.weights, self.samples = weights, SAMPLES
        self.dense = [torch.randn(TOKENS, WIDTH, generator=g) @ mix for _ in range(SAMPLES)]
        self.quantized, self.place, self.visited = list(self.dense), -1, []

    def advance(self):
        self.place += 1
        return f"blocks.{self.place}" if self.place < BLOCKS else None

    def here(self):
        self.visited.append(self.place)
        return self

    def leave(self, linears):
        with torch.no_grad():
            self.quantized = [self.block(x, linears) for x in self.quantized]
            self.dense = [self.block(x, {}) for x in self.dense]

    def close(self):
        pass

    gradients = staticmethod(nullcontext)

    def output(self, index, linears):
        return [self.block(self.quantized[index], linears)]

    def target(self, index):
        return [self.block(self.dense[index], {})]

    def block(self, x, linears):
        return x + self.layer("down", gelu(self.layer("up", x, linears), approximate="tanh"), linears)

    def layer(self, name, x, linears):
        name = f"blocks.{self.place}.{name}"
        if name in linears:
            return linears[name](x)
        return linear(x, self.weights[f"{name}.weight"].float(), self.weights[f"{name}.bias"].float())


def recorded(weights):
    """Statistics of every input."""
    runs, found = ResidualRuns(weights, seed=2), {}
    while runs.advance() is not None:
        x = torch.cat(runs.dense)
        found[f"blocks.{runs.place}.up"] = InputStatistics.from_tokens(x)
        hidden = gelu(runs.layer("up", x, {}), approximate="tanh")
        found[f"blocks.{runs.place}.down"] = InputStatistics.from_tokens(hidden)
        runs.leave({})
    return found


def make_job(target, weights, precision="int4", **more):
    """As the command makes it, in the pack's own format."""
    return QuantizeJob(
        Architecture(name=KIND, title=KIND, blocks=()),
        plan(),
        weights,
        list(weights),
        QuantSpec(precision, "w4a8", 16, "best", score_tokens=64),
        torch.device("cpu"),
        target,
        f"test {precision}",
        metadata={"svdquant_source": "tiny"},
        calibration=recorded(weights),
        **more,
    )
