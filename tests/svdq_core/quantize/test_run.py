"""From weights to a file: memory that does not grow with the model, shares that cover it once."""

import subprocess
import sys

import pytest
from pack import ROOT

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
sys.path[:0] = [{tests!r}, {benchmarks!r}]
import pack, torch
from pathlib import Path
from synthetic_model import Size, write_model
from svdquant_pack.svdq_core.checkpoint import Checkpoint, dense_read
from svdquant_pack.svdq_core.quantize.run import Job, quantize_to_file
from svdquant_pack.svdq_core.quantize.spec import QuantSpec
from svdquant_pack.svdq_core.quantize.statistics import InputStatistics
dense_read.RELEASE_BYTES = 4 << 20
class Drawn(dict):
    def __contains__(self, name): return True
    def __missing__(self, name):
        width = model.shape(name + ".weight")[1]
        return InputStatistics.from_tokens(torch.randn(32, width))
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
def run(blocks):
    global model
    source, target = folder / f"{{blocks}}.safetensors", folder / f"out{{blocks}}.safetensors"
    size = write_model(source, Size("flux", 256, (1, blocks)), torch.device("cpu"))
    model = dense_read.DenseModel(Checkpoint(source))
    spec, cpu = QuantSpec(rank=0, score_tokens=32), torch.device("cpu")
    quantize_to_file(Job(model.architecture, model, list(model), spec, cpu, target, "x", calibration=Drawn()))
    return size
folder = Path({folder!r})
run(25)  # what torch loads and holds on to
before = peak()
size = run(100)
print(1024 * (peak() - before), size)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_memory_does_not_grow_with_the_model(tmp_path):
    """100 blocks, 205 MB: neither the source's pages nor the finished layers pile up."""
    places = {"tests": str(ROOT / "tests"), "benchmarks": str(ROOT / "benchmarks"), "folder": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", MEMORY.format(**places)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown, size = map(int, done.stdout.split())
    assert size > 190e6
    assert grown < 0.3 * size, f"{grown / 1e6:.0f} MB"
