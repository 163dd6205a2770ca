"""From weights to a file: memory that does not grow with the model, shares that cover it once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from svdquant_pack import ROOT
from svdquant_pack.svdq_core.quantize.share import Share

COSTS = {f"layer{index}": float(cost) for index, cost in enumerate((9, 1, 1, 4, 4, 1, 7, 2, 2, 9))}


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_shares_cover_everything_once_and_weigh_the_same(world):
    shares = [Share(rank, world).of(COSTS) for rank in range(world)]
    assert sorted(name for share in shares for name in share) == sorted(COSTS)
    loads = [sum(COSTS[name] for name in share) for share in shares]
    assert max(loads) - min(loads) <= 2


def test_shares_do_not_depend_on_the_order():
    backwards = dict(reversed(COSTS.items()))
    assert Share(1, 3).of(backwards) == Share(1, 3).of(COSTS)


MEMORY = """
import sys
sys.path[:0] = [{tools!r}, {benchmarks!r}]
import torch
from pathlib import Path
from quantize_time import peak_memory
from synthetic_model import Size, write_model
from svdquant_pack.svdq_core.checkpoint import Checkpoint, dense_read
from svdquant_pack.svdq_core.quantize.to_file import QuantizeJob, quantize_to_file
from svdquant_pack.svdq_core.quantize.source_model import plan_dense
from svdquant_pack.svdq_core.quantize.spec import QuantSpec
from svdquant_pack.svdq_core.quantize.statistics import InputStatistics
class Drawn(dict):
    def __contains__(self, name): return True
    def __missing__(self, name):
        return InputStatistics.from_tokens(torch.randn(32, model.shape(name + ".weight")[1]))
source, cpu = Path({folder!r}) / "source.safetensors", torch.device("cpu")
size = write_model(source, Size("flux", 256, (1, {blocks})), cpu)
model = dense_read.DenseModel(Checkpoint(source))
spec, target = QuantSpec(rank=0, score_tokens=32), source.with_name("out.safetensors")
plan, known = plan_dense(model), {{"calibration": Drawn()}}
quantize_to_file(QuantizeJob(model.architecture, plan, model, list(model), spec, cpu, target, "x", **known))
print(peak_memory(), size)
"""


def measured(folder: Path, blocks: int) -> tuple[int, int]:
    """Peak memory and size of the source, in bytes."""
    places = {"tools": str(ROOT / "tools"), "benchmarks": str(ROOT / "benchmarks"), "folder": str(folder)}
    # what is freed goes back to the system, as it does by itself where layers are large
    variables = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    command = [sys.executable, "-c", MEMORY.format(blocks=blocks, **places)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    peak, size = map(int, done.stdout.split())
    return peak, size


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_memory_does_not_grow_with_the_model(tmp_path):
    """Neither what is read nor the finished layers pile up. Measured: 273 MB for 12 MB, 275 MB for 56 MB."""
    (small, small_size), (large, large_size) = measured(tmp_path, 2), measured(tmp_path, 24)
    assert large_size > 4 * small_size
    assert large - small < 0.4 * (large_size - small_size), f"{(large - small) / 1e6:.0f} MB"
