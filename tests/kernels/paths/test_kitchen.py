"""comfy-kitchen's w4a4 as a path: it takes the layer's own tensors and gives the reference's values."""

import pytest
import torch
from compare import relative_rms_error
from layer_calls import layer_call, on_reference
from problems import int4_layer

from svdquant_pack.kernels.epilogue import Epilogue
from svdquant_pack.kernels.paths import kitchen
from svdquant_pack.kernels.paths.kitchen import Kitchen

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def path():
    pytest.importorskip("comfy_kitchen", reason="comfy-kitchen is not installed")
    return Kitchen()


@pytest.mark.parametrize("act_unsigned", [False, True])
@pytest.mark.parametrize("rest", ["plain", "sum", "gelu"])
def test_equals_the_reference(act_unsigned, rest, path):
    torch.manual_seed(0)
    x = torch.randn(70, 192).bfloat16()
    x = torch.nn.functional.gelu(x) if act_unsigned else x
    before = torch.randn(70, 128).bfloat16()
    epilogue = Epilogue(before.clone(), accumulate=True) if rest == "sum" else Epilogue()
    bias = torch.randn(128).bfloat16()
    tensors = int4_layer(128, 192, 32, torch.bfloat16, CPU)
    options = {"act_unsigned": act_unsigned, "gelu": rest == "gelu", "epilogue": epilogue}
    call = layer_call(x, tensors, "int4", "w4a4", bias=bias, **options)
    wanted = on_reference(call).float() + (before.float() if rest == "sum" else 0)
    assert path.why_not_for(call) is None
    # in plain torch it divides by scales that are rounded to 16 bits, which moves one code in fifty
    assert relative_rms_error(path.run(call), wanted) < 0.03


def test_says_where_it_cannot(path, monkeypatch):
    assert path.why_not_here(CPU, torch.bfloat16) == "it is for GPUs"
    assert path.why_not_here(GPU, torch.bfloat16) is None
    assert "float32" in path.why_not_here(GPU, torch.float32)
    call = layer_call(torch.zeros(3, 64).half(), int4_layer(72, 64, 16, torch.float16, CPU), "int4", "w4a4")
    assert "72 outputs" in path.why_not_for(call)
    monkeypatch.setattr(kitchen, "OPERATIONS", ("no_such_operation",))
    assert "no comfy-kitchen" in path.why_not_here(GPU, torch.bfloat16)


def test_calls_share_nothing(path):
    call = layer_call(torch.zeros(3, 64).half(), int4_layer(128, 64, 16, torch.float16, CPU), "int4", "w4a4")
    assert path.makes(call) is None
