"""What the loader says about memory."""

import pytest
import torch
from host_models import put_tiny

GIB = 2**30


@pytest.fixture
def model(host):
    name = put_tiny(host.model_folder("diffusion_models"))
    return host.call("SVDQuantModelLoader", model_name=name, compute="w4a16")


@pytest.fixture
def memory_line(host):
    from svdquant_pack.nodes.host import memory_words

    return memory_words


def test_the_status_says_it(model):
    assert "GiB of weights" in model[1] and model[1].endswith("no GPU: it runs on the CPU")


@pytest.mark.parametrize(("gib", "said"), [(80, "fits into the GPU's 80.0 GiB"), (0.001, "keeps a part in main")])
def test_it_fits_or_not(model, memory_line, gib, said, monkeypatch):
    monkeypatch.setattr(model[0], "load_device", torch.device("cuda"))
    monkeypatch.setattr(memory_line.comfy.model_management, "get_total_memory", lambda device: gib * GIB)
    assert said in memory_line.memory_line(model[0])
