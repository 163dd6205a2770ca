"""Layers of several parts, and the dense layer that a quantized one stands for."""

import sys
from pathlib import Path

import pytest
import torch
from compare import relative_rms_error
from safetensors.torch import load_file
from tiny_files import DATA

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from problems import awq_layer, int4_layer, int8_layer, nvfp4_layer

from svdquant_pack.kernels.launching import replay
from svdquant_pack.svdq_core import apply_layer as apply_module
from svdquant_pack.svdq_core.apply_layer import apply_blob, apply_layer, dense_bias, dense_weight
from svdquant_pack.svdq_core.blob import to_blob
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.layer import Part, QuantizedLayer

LAYERS = {"int4": int4_layer, "nvfp4": nvfp4_layer, "int8": int8_layer, "awq": awq_layer}


@pytest.fixture(scope="module", params=["int4", "nvfp4"])
def model(request):
    return read_checkpoint(Checkpoint(DATA / f"flux_tiny_{request.param}_r32.safetensors"))


def draw_tokens(layer: QuantizedLayer, count=24):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(2, count // 2, layer.in_features, generator=g)
    for part in layer.parts:
        if part.act_unsigned:
            columns = slice(*part.columns)
            x[..., columns] = torch.nn.functional.gelu(x[..., columns], approximate="tanh")
    return x


def test_every_layer_equals_its_dense_form_without_activation_codes(model):
    for name, layer in model.layers.items():
        x, bias = draw_tokens(layer), dense_bias(layer)
        expected = x @ dense_weight(layer).T + bias
        out = apply_layer(layer, x, "w4a16")
        assert out.shape == expected.shape, name
        assert relative_rms_error(out, expected) < 1e-6, name  # float32 sums in another order


def test_activation_codes_cost_what_their_bits_say(model):
    layer = model.layers["single_blocks.0.linear2"]
    x, bias = draw_tokens(layer, 64), dense_bias(layer)
    expected = x @ dense_weight(layer).T + bias
    w4a4, w4a8 = (relative_rms_error(apply_layer(layer, x, mode), expected) for mode in ("w4a4", "w4a8"))
    assert 0.02 < w4a4 < 0.25 and w4a8 < w4a4 / 4


def test_dense_oracle():
    model = read_checkpoint(Checkpoint(DATA / "flux_tiny_int4_r32.safetensors"))
    samples = load_file(DATA / "flux_tiny_int4_host_dense_samples.safetensors")
    compared = 0
    for name, layer in model.layers.items():
        for end, tensor in (("weight", dense_weight(layer)), ("bias", dense_bias(layer))):
            key = f"{name}.{end}"
            if key not in samples:  # the text stream has the structure of the image stream and is not in the oracle
                continue
            found, wanted = tensor.flatten()[samples[f"{key}.index"].long()], samples[key]
            if layer.parts[0].scheme == "awq" and end == "bias":
                # the file rounded bias + 1 to bfloat16: half a step of numbers below 2
                assert (found - wanted).abs().max() <= 2**-8
            else:
                torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
            compared += 1
    assert compared == 16


@pytest.mark.parametrize(
    "name", ["single_blocks.0.linear1", "single_blocks.0.linear2", "single_blocks.0.modulation.lin"]
)
@pytest.mark.parametrize("compute", ["w4a4", "w4a8", "w4a16"])
def test_lora_adds_its_own_product(model, name, compute):
    layer = model.layers[name]
    g = torch.Generator().manual_seed(9)
    down, up = torch.randn(layer.in_features, 16, generator=g) / 16, torch.randn(layer.out_features, 16, generator=g)
    x = draw_tokens(layer)
    added = apply_layer(layer, x, compute, down, up) - apply_layer(layer, x, compute)
    assert relative_rms_error(added, (x @ down) @ up.T) < 1e-4  # difference of two float32 outputs


def test_a_bias_of_its_own_in_a_column_part_counts():
    model = read_checkpoint(Checkpoint(DATA / "flux_tiny_int4_r32.safetensors"))
    layer = model.layers["single_blocks.0.linear2"]
    x = draw_tokens(layer)
    before, dense_before = apply_layer(layer, x, "w4a16"), dense_bias(layer)
    own = torch.linspace(-1, 1, layer.out_features)
    layer.parts[0].tensors["bias"] = own
    torch.testing.assert_close(apply_layer(layer, x, "w4a16") - before, own.expand_as(before), rtol=0, atol=1e-5)
    torch.testing.assert_close(dense_bias(layer), dense_before + own, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["one part", "two on rows", "two on columns"])
def test_a_gelu_behind_a_layer_is_one_gelu_of_the_whole_result(kind):
    layer = draw_layer(kind, torch.device("cpu"))
    x = torch.randn(5, layer.in_features).bfloat16() / 8
    wanted = torch.nn.functional.gelu(apply_layer(layer, x, "w4a8").float(), approximate="tanh")
    assert relative_rms_error(apply_layer(layer, x, "w4a8", gelu="output").float(), wanted) < 2**-8  # one rounding


@pytest.mark.parametrize("kind", ["one part", "two on rows", "two on columns"])
@pytest.mark.parametrize("first", [256, 1536])
def test_a_gelu_behind_a_layer_may_begin_at_a_column(kind, first):
    """Inside the first part on rows or the second, which begins at 1024."""
    layer = draw_layer(kind, torch.device("cpu"))
    x = torch.randn(5, layer.in_features).bfloat16() / 8
    plain, everywhere = (apply_layer(layer, x, "w4a8", gelu=gelu) for gelu in (None, "output"))
    result = apply_layer(layer, x, "w4a8", gelu="output", gelu_from=first)
    assert torch.equal(result[:, :first], plain[:, :first])
    assert torch.equal(result[:, first:], everywhere[:, first:])


@pytest.mark.parametrize("compute", ["w4a4", "w4a8", "w4a16"])
def test_columns_may_lie_in_two_tensors(compute):
    layer = draw_layer("two on columns", torch.device("cpu"))
    blob, layout = to_blob(layer)
    x = torch.randn(1, 5, layer.in_features).bfloat16() / 8
    sides = x[..., :1024].clone(), torch.cat((x, x), dim=-1)[..., 1024:3072]
    down, up = torch.randn(layer.in_features, 16).bfloat16() / 30, torch.randn(layer.out_features, 16).bfloat16()
    for factors in ((), (down, up)):
        wanted = apply_layer(layer, x, compute, *factors)
        named = {"lora_down": factors[0], "lora_up": factors[1]} if factors else {}
        assert torch.equal(apply_layer(layer, sides, compute, *factors), wanted)
        assert torch.equal(apply_blob(blob, layout.to_json(), layer.bias, sides, compute, **named), wanted)


def test_a_blob_computes_what_its_layer_does(model):
    for name, layer in model.layers.items():
        blob, layout = to_blob(layer)
        x = draw_tokens(layer)
        wanted = apply_layer(layer, x, "w4a8")
        assert torch.equal(apply_blob(blob, layout.to_json(), layer.bias, x, "w4a8"), wanted), name


def draw_layer(kind: str, device: torch.device) -> QuantizedLayer:
    """A layer of FLUX's shapes at a smaller width, bfloat16."""

    def part(rows, columns, unsigned=False, scheme="int4"):
        n, k = rows[1] - rows[0], columns[1] - columns[0]
        return Part(scheme, rows, columns, unsigned, LAYERS[scheme](n, k, 32, torch.bfloat16, device))

    K = 1024
    parts = {
        "one part": (part((0, 2 * K), (0, K)),),
        "nvfp4": (part((0, 2 * K), (0, K), scheme="nvfp4"),),
        "int8": (part((0, 2 * K), (0, K), scheme="int8"),),
        "awq": (part((0, 2 * K), (0, K), scheme="awq"),),
        "two on rows": (part((0, K), (0, K)), part((K, 3 * K), (0, K))),
        "two on columns": (part((0, K), (0, K)), part((0, K), (K, 3 * K), True)),
    }[kind]
    rows, columns = parts[-1].rows[1], parts[-1].columns[1]
    return QuantizedLayer(columns, rows, parts, torch.randn(rows, device=device).bfloat16())


@pytest.mark.parametrize("kind", ["one part", "two on columns", "awq"])
@pytest.mark.parametrize("compute", ["w4a4", "w4a8", "w4a16"])
def test_one_opaque_call_under_compile(kind, compute):
    layer = draw_layer(kind, torch.device("cpu"))
    torch._dynamo.reset()  # it counts what it compiled for earlier parameters
    (blob, layout), graphs = to_blob(layer), []
    text, x = layout.to_json(), torch.randn(1, 5, layer.in_features).bfloat16() / 8

    def backend(graph, _inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    def forward(x):
        return apply_blob(blob, text, layer.bias, x, compute)

    compiled = torch.compile(forward, fullgraph=True, backend=backend)
    assert torch.equal(compiled(x), forward(x))
    assert graphs == [["svdquant.blob_linear.default"]]


def test_the_fake_has_the_shape_of_the_result():
    layer = draw_layer("one part", torch.device("cpu"))
    blob, layout = to_blob(layer)
    x = torch.randn(2, 5, layer.in_features).bfloat16()
    arguments = x, blob, layer.bias, None, None, layout.to_json(), "w4a8", None, 0
    torch.library.opcheck(apply_module._blob_linear_op, arguments, test_utils="test_faketensor")


def test_a_transposed_input_is_as_good():
    layer = draw_layer("one part", torch.device("cpu"))
    x = torch.randn(5, layer.in_features).bfloat16()
    assert torch.equal(apply_layer(layer, x.T.contiguous().T, "w4a8"), apply_layer(layer, x, "w4a8"))


@pytest.mark.gpu
@pytest.mark.parametrize("lora_rank", [0, 16, 160])
@pytest.mark.parametrize("rows", [300, 2])
@pytest.mark.parametrize("kind", ["one part", "two on rows", "two on columns", "nvfp4", "int8", "awq"])
@pytest.mark.parametrize("compute", ["w4a4", "w4a8", "w4a16"])
def test_launches_issued_again_give_the_same_bits(kind, compute, rows, lora_rank, monkeypatch):
    device = torch.device("cuda", 0)
    monkeypatch.setattr(replay._thread, "known", {})
    made = [(layer, *to_blob(layer)) for layer in (draw_layer(kind, device) for _ in range(2))]
    for turn in range(6):
        layer, blob, layout = made[turn % 2]
        x = torch.randn(1, rows, layer.in_features, device=device).bfloat16()
        factors = {}
        if lora_rank:
            sizes = layer.in_features, layer.out_features
            drawn = [torch.randn(size, lora_rank, device=device).bfloat16() / 30 for size in sizes]
            factors = {"lora_down": drawn[0], "lora_up": drawn[1]}
        monkeypatch.setattr(replay, "RECORDS", False)
        wanted = apply_blob(blob, layout.to_json(), layer.bias, x, compute, **factors)
        monkeypatch.setattr(replay, "RECORDS", True)
        assert torch.equal(apply_blob(blob, layout.to_json(), layer.bias, x, compute, **factors), wanted)
    if kind != "int8" or compute != "w4a16":  # in plain torch
        assert [type(found).__name__ for found in replay._thread.known.values()] == ["Replay"]
    assert not replay._refused


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [4608, 300])
def test_a_single_block_issued_again_gives_the_same_bits(rows, monkeypatch):
    """Columns of a wider matrix beside another tensor, and a GELU that begins at a column."""
    device = torch.device("cuda", 0)
    monkeypatch.setattr(replay._thread, "known", {})
    blobs = [(layer, *to_blob(layer)) for layer in (draw_layer(k, device) for k in ("one part", "two on columns"))]
    for _ in range(4):
        x, attention = (torch.randn(1, rows, 1024, device=device).bfloat16() for _ in range(2))
        results = []
        for records in (False, True):
            monkeypatch.setattr(replay, "RECORDS", records)
            for layer, blob, layout in blobs:
                wide = torch.cat((x, x, x), dim=-1)
                taken = x if len(layer.parts) == 1 else (attention, wide[..., 1024:])
                gelu = {"gelu": "output", "gelu_from": 1024} if len(layer.parts) == 1 else {}
                results.append(apply_blob(blob, layout.to_json(), layer.bias, taken, "w4a8", **gelu))
        assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])
    assert [type(found).__name__ for found in replay._thread.known.values()] == ["Replay", "Replay"]
