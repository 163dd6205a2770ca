"""A source that changes while hours of quantizing go on: nothing is written, and the message says which file."""

import re
import shutil

import pytest
from dense_files import write_dense

from svdquant_pack.svdq_core.errors import CheckpointError
from svdquant_pack.svdq_core.quantize.command import QuantizeRequest, quantize_file
from svdquant_pack.svdq_core.quantize.overrides import Overrides
from svdquant_pack.svdq_core.quantize.spec import QuantSpec


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return write_dense(tmp_path_factory.mktemp("dense") / "dense.safetensors")


def cut(path):
    with path.open("r+b") as file:
        file.truncate(2000)


def overwrite(path):
    """Every value another one, under the same header."""
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(len(data) // 4)
        file.write(bytes(byte ^ 0x15 for byte in data[len(data) // 4 :]))


def replace(path):
    other = path.with_name("other")
    shutil.copy(path, other)
    other.replace(path)


@pytest.mark.parametrize("change", [cut, overwrite, replace], ids=lambda change: change.__name__)
def test_nothing_is_written(dense, change, tmp_path):
    source, target = tmp_path / "dense.safetensors", tmp_path / "svdq.safetensors"
    shutil.copy(dense, source)
    seen = []

    def step(done, total, name):
        seen.append(name)
        if done == 3:
            change(source)

    request = QuantizeRequest(source, target, QuantSpec(rank=16), Overrides(), device="cpu")
    with pytest.raises(CheckpointError, match=r"^dense\.safetensors: the file changed while it was read: ") as caught:
        quantize_file(request, lambda line: None, step)
    assert "has 2000" in str(caught.value) if change is cut else re.search("wrote into|another file", str(caught.value))
    assert len(seen) >= 3
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["dense.safetensors", "svdq.safetensors.journal"]
