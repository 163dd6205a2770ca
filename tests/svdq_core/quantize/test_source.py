"""The hash of a source: the same for the same model in any order, another for any finetune."""

import torch

from svdquant_pack.svdq_core.quantize.source import hash_tensors


def _model(seed=0):
    g = torch.Generator().manual_seed(seed)
    return {"a.weight": torch.randn(300, 70, generator=g), "a.bias": torch.randn(300, generator=g).bfloat16()}


def test_order_and_memory_do_not_matter():
    model = _model()
    expected = hash_tensors(model.items())
    assert len(expected) == 32
    assert hash_tensors(reversed(model.items())) == expected
    assert hash_tensors((n, torch.nn.Parameter(t.clone())) for n, t in model.items()) == expected


def test_every_difference_counts():
    model = _model()
    expected = hash_tensors(model.items())
    transposed = model | {"a.weight": model["a.weight"].reshape(70, 300)}
    cast, renamed = model | {"a.bias": model["a.bias"].half()}, {f"b{n}": t for n, t in model.items()}
    scaled = model | {"a.weight": model["a.weight"] * (1 + 1e-3)}
    others = [_model(1), transposed, cast, renamed, scaled, {"a.bias": model["a.bias"]}]
    assert len({expected, *(hash_tensors(other.items()) for other in others)}) == 7
    assert hash_tensors(model.items(), "lora") != expected


def test_any_dtype_and_size():
    tensors = {
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.0),
        "fp8": torch.ones(5, 5).to(torch.float8_e4m3fn),
        "codes": torch.ones(5, dtype=torch.uint8),
    }
    assert hash_tensors(tensors.items()) == hash_tensors(tensors.items())
