"""Cutting and joining parts changes no code and no result."""

import pytest
import torch

from svdquant_pack.kernels.packing import pack_nibbles
from svdquant_pack.kernels.reference import encode_e2m1
from svdquant_pack.svdq_core.apply_layer import apply_layer, dense_bias, dense_weight
from svdquant_pack.svdq_core.blob import to_blob
from svdquant_pack.svdq_core.layer import Part, QuantizedLayer
from svdquant_pack.svdq_core.stack import (
    as_in_files,
    cut,
    join_inputs,
    join_rows,
    same_bits,
    slice_columns,
    slice_layer_rows,
    slice_rows,
    stack_columns,
    stack_rows,
)

SCHEMES = ["int4", "nvfp4", "int8", "awq"]


def make_part(scheme, rows, columns, seed=0, smooth=None, *, rank=16, unsigned=False):
    g = torch.Generator().manual_seed(seed)
    group = 16 if scheme == "nvfp4" else 64
    codes = torch.randint(0 if scheme == "awq" else -7, 8, (rows, columns), generator=g)
    scales = torch.rand(columns // group, rows, generator=g) + 0.5
    tensors = {"qweight": pack_nibbles(encode_e2m1(codes.float()) if scheme == "nvfp4" else codes.to(torch.int8))}
    tensors["wscales"] = scales.to(torch.float8_e4m3fn) if scheme == "nvfp4" else scales.bfloat16()
    if scheme == "int8":
        tensors = {"qweight": 18 * codes.to(torch.int8), "wscales": scales[0].contiguous()}
    if scheme == "awq":
        return Part(scheme, (0, rows), (0, columns), False, tensors | {"wzeros": -7 * tensors["wscales"]})
    if scheme == "nvfp4":
        tensors["wtscale"] = torch.rand(1, generator=g) + 0.5
    smooth = torch.rand(columns, generator=g) + 0.5 if smooth is None else smooth
    tensors |= {"smooth_factor": smooth, "smooth_factor_orig": smooth.clone()}
    tensors |= {"proj_down": torch.randn(columns, rank, generator=g), "proj_up": torch.randn(rows, rank, generator=g)}
    return Part(scheme, (0, rows), (0, columns), unsigned and scheme == "int4", tensors)


def layer_of(part, bias=None):
    return QuantizedLayer(part.in_features, part.out_features, (part,), bias)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_of_a_part_are_rows_of_its_weight(scheme):
    part = make_part(scheme, 256, 128)
    piece = slice_rows(part, 64, 192)
    piece.check("x")
    piece = Part(scheme, (0, 128), (0, 128), False, piece.tensors)
    assert torch.equal(dense_weight(layer_of(piece)), dense_weight(layer_of(part))[64:192])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_columns_of_a_part_are_columns_of_its_weight(scheme):
    part = make_part(scheme, 128, 256)
    piece = slice_columns(part, 64, 192)
    piece.check("x")
    piece = Part(scheme, (0, 128), (0, 128), False, piece.tensors)
    expected = dense_weight(layer_of(part))[:, 64:192]
    assert float((dense_weight(layer_of(piece)) - expected).abs().max()) < 1e-5  # a product of fewer columns


@pytest.mark.parametrize("scheme", ["int4", "nvfp4"])
def test_joined_parts_compute_the_same(scheme):
    smooth = torch.rand(128) + 0.5
    parts = [make_part(scheme, rows, 128, seed, smooth) for seed, rows in enumerate((128, 256, 128))]
    layer = stack_rows(parts, [torch.randn(p.out_features) for p in parts])
    joined = join_rows(layer.parts)
    joined.check("x")
    assert joined.rank == 48 and joined.rows == (0, 512)
    one = layer_of(joined, layer.bias)
    assert torch.allclose(dense_weight(one), dense_weight(layer), rtol=1e-5, atol=1e-5)
    x = torch.randn(5, 128)
    assert torch.allclose(apply_layer(one, x, "w4a4"), apply_layer(layer, x, "w4a4"), rtol=1e-4, atol=1e-4)


def test_scales_of_whole_tensors_become_scales_of_channels():
    """Both kinds may be there; each applies once."""
    smooth = torch.ones(128)
    parts = [make_part("nvfp4", 128, 128, seed, smooth) for seed in range(2)]
    parts[0].tensors["wcscales"] = torch.rand(128) + 0.5
    both = parts[0]["wcscales"] * parts[0]["wtscale"]
    joined = join_rows(stack_rows(parts, [None, None]).parts)
    assert "wtscale" not in joined.tensors
    assert torch.equal(joined["wcscales"], torch.cat((both, parts[1]["wtscale"].expand(128))))


def other_smoothing(parts):
    parts[1].tensors["smooth_factor"] = parts[1]["smooth_factor"] + 1e-7


def other_original(parts):
    parts[1].tensors["smooth_factor_orig"] = parts[1]["smooth_factor_orig"] * 2


def other_dtype(parts):
    parts[1].tensors["wscales"] = parts[1]["wscales"].float()


def own_bias(parts):
    parts[0].tensors["bias"] = parts[1].tensors["bias"] = torch.ones(128)


@pytest.mark.parametrize("change", [other_smoothing, other_original, other_dtype, own_bias])
def test_parts_that_differ_are_not_joined(change):
    parts = [make_part("int4", 128, 128, seed, torch.ones(128)) for seed in range(2)]
    change(parts)
    assert join_rows(stack_rows(parts, [None, None]).parts) is None


def test_signed_and_unsigned_are_not_joined():
    parts = [make_part("int4", 128, 128, s, torch.ones(128), unsigned=bool(s)) for s in range(2)]
    assert join_rows(stack_rows(parts, [None, None]).parts) is None
    assert join_rows(stack_rows([make_part("awq", 128, 128)] * 2, [None, None]).parts) is None


def test_rows_of_a_layer_are_rows_of_its_weight_and_bias():
    parts = [make_part("int4", 128, 128, 0), make_part("int4", 256, 128, 1, unsigned=True)]
    layer = stack_rows(parts, [torch.randn(128), torch.randn(256)])
    piece = slice_layer_rows(layer, 100, 300)
    assert [p.rows for p in piece.parts] == [(0, 28), (28, 200)]
    assert torch.allclose(dense_weight(piece), dense_weight(layer)[100:300], rtol=1e-5, atol=1e-5)
    assert torch.allclose(dense_bias(piece), dense_bias(layer)[100:300])


def test_a_layer_is_cut_to_the_rectangles_of_a_format():
    """One part over the whole of linear2 becomes two, and the bias goes to the last."""
    part, bias = make_part("int4", 128, 640), torch.randn(128)
    pieces = cut(layer_of(part, bias), [((0, 128), (0, 128)), ((0, 128), (128, 640))])
    assert pieces[0][1] is None and pieces[1][1] is not None and same_bits(pieces[1][1], bias)
    again = stack_columns([p for p, _ in pieces], [b for _, b in pieces])
    again.check("x")
    assert torch.allclose(dense_weight(again), dense_weight(layer_of(part)), rtol=1e-5, atol=1e-5)


def test_parts_that_match_are_handed_over_as_they_are():
    parts = [make_part("int4", 128, 128, 0), make_part("int4", 256, 128, 1)]
    layer = stack_rows(parts, [torch.ones(128), torch.zeros(256)])
    pieces = cut(layer, [((0, 128), (0, 128)), ((128, 384), (0, 128))])
    assert all(p["qweight"] is q["qweight"] for (p, _), q in zip(pieces, layer.parts, strict=True))
    assert [float(b[0]) for _, b in pieces] == [1.0, 0.0]


def test_three_parts_make_one_rectangle_where_they_share_their_smoothing():
    smooth = torch.ones(128)
    parts = [make_part("int4", 128, 128, s, smooth) for s in range(3)]
    layer = stack_rows(parts, [torch.zeros(128)] * 3)
    ((whole, _),) = cut(layer, [((0, 384), (0, 128))])
    assert whole.rank == 48
    other_smoothing(layer.parts)
    assert cut(layer, [((0, 384), (0, 128))]) is None


def test_columns_cannot_be_joined():
    layer = stack_columns([make_part("int4", 128, 128, s) for s in range(2)], [None, torch.zeros(128)])
    assert cut(layer, [((0, 128), (0, 256))]) is None


def test_a_bias_of_minus_zeros_is_kept():
    layer = stack_columns([make_part("int4", 128, 128, s) for s in range(2)], [torch.zeros(128), torch.zeros(128)])
    assert layer.parts[0].get("bias") is None
    layer = stack_columns([make_part("int4", 128, 128, s) for s in range(2)], [-torch.zeros(128), torch.zeros(128)])
    assert layer.parts[0].get("bias") is not None


def test_same_bits_sees_what_equality_does_not():
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.tensor([0.0]), torch.tensor([0.0]).double())
    assert same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))


@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_joined_inputs_compute_the_same_and_come_apart_bit_for_bit(scheme):
    smooth = torch.rand(128) + 0.5
    parts = [make_part(scheme, 256, 128, 1, smooth, rank=16), make_part(scheme, 128, 128, 2, smooth, rank=32)]
    layer = stack_rows(parts, [torch.randn(256), torch.randn(128)])
    joined = join_inputs(layer)
    (part,) = joined.parts
    part.check("x")
    assert part.pieces == ((256, 16), (128, 32)) and part.rank == 48
    assert torch.equal(dense_weight(joined), dense_weight(layer))
    x = torch.randn(5, 128)
    for compute in ("w4a4", "w4a8", "w4a16"):
        found, expected = apply_layer(joined, x, compute), apply_layer(layer, x, compute)
        assert float((found - expected).norm() / expected.norm()) < 1e-6, compute  # its sums are blocked by width
    blob, layout = to_blob(joined)
    back = as_in_files(type(layout).from_json(layout.to_json()).read(blob, joined.bias))
    assert join_inputs(back).parts[0].pieces == part.pieces
    for piece, original in zip(back.parts, layer.parts, strict=True):
        assert (piece.rows, piece.columns, piece.pieces) == (original.rows, original.columns, ())
        assert piece.tensors.keys() == original.tensors.keys()
        assert all(same_bits(piece[name], original[name]) for name in original.tensors)


def test_inputs_that_differ_stay_apart():
    smooth = torch.rand(128) + 0.5
    layer = stack_rows([make_part("int4", 128, 128, seed, smooth + seed) for seed in (1, 2)], [None, None])
    assert join_inputs(layer) is layer
    layer = stack_rows([make_part("nvfp4", 128, 128, seed, smooth) for seed in (1, 2)], [None, None])
    assert join_inputs(layer) is layer
    layer = stack_columns([make_part("int4", 128, 128, seed, smooth) for seed in (1, 2)], [None, None])
    assert join_inputs(layer) is layer


def test_tensors_without_values_are_the_same_bits():
    """Of rank 0 down projections, transposed, no strides allow a view as bytes."""
    assert same_bits(torch.zeros(0, 128).T, torch.zeros(0, 128).T)
    assert not same_bits(torch.zeros(0, 128).T, torch.zeros(0, 64).T)
