"""Codes laid out for INT4 tensor cores at load: the same bits for every reader, whichever order they lie in."""

import pytest
import torch
from problems import int4_layer, nvfp4_layer

from svdquant_pack.kernels import gpus
from svdquant_pack.kernels.layer_call import COMPUTE_MODES
from svdquant_pack.kernels.paths import four_bit, layer_paths, measured_order, path
from svdquant_pack.kernels.paths.measured_order import sizes_of, try_first
from svdquant_pack.kernels.step.fragments import are_fragments, to_weight_fragments
from svdquant_pack.svdq_core import fragment_order
from svdquant_pack.svdq_core.apply_layer import apply_blob, dense_weight
from svdquant_pack.svdq_core.arena import Arena, aligned
from svdquant_pack.svdq_core.blob import BlobLayout, to_blob
from svdquant_pack.svdq_core.fragment_order import as_rows, lay_out
from svdquant_pack.svdq_core.layer import Part, QuantizedLayer, with_tensors
from svdquant_pack.svdq_core.shared_input import SharedInput
from svdquant_pack.svdq_core.stack import as_in_files

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
K, N = 192, 128


def part(scheme="int4", n=N):
    make = {"int4": int4_layer, "nvfp4": nvfp4_layer}[scheme]
    return Part(scheme, (0, n), (0, K), False, make(n, K, 16, torch.bfloat16, CPU))


@pytest.fixture
def wanted(monkeypatch):
    monkeypatch.setattr(fragment_order, "keeps_fragments", lambda *_: True)


@pytest.fixture
def pair(wanted):
    """A layer as blob and layout, in rows and in fragments."""
    torch.manual_seed(0)
    rows, bias = part(), torch.randn(N).bfloat16()
    layers = [QuantizedLayer(K, N, (one,), bias, input="x") for one in (rows, lay_out(rows, CPU))]
    return [(*to_blob(layer), layer.bias) for layer in layers]


def test_the_blob_is_as_large_and_the_layout_says_what_lies_there(pair):
    (rows, _, _), (fragments, layout, _) = pair
    assert rows.nbytes == fragments.nbytes and not torch.equal(rows, fragments)
    again = BlobLayout.from_json(layout.to_json())
    assert again == layout and not again.parts[0].as_in_files
    assert again.parts[0].slices["qweight"].shape == (K // 64, N // 16, 32, 4)


def test_readers_get_rows(pair):
    (blob, layout, _), (other, ordered, _) = pair
    expected, found = layout.read(blob), ordered.read(other)
    assert torch.equal(found.parts[0]["qweight"], expected.parts[0]["qweight"])
    assert torch.equal(dense_weight(found), dense_weight(expected))
    lying = ordered.read(other, as_it_lies=True)
    assert are_fragments(lying.parts[0]["qweight"]) and lying.parts[0].width == K
    assert lying.parts[0]["qweight"].data_ptr() == other.data_ptr() + ordered.parts[0].slices["qweight"].offset
    assert torch.equal(to_blob(as_in_files(lying))[0], blob)


@pytest.mark.parametrize("mode", COMPUTE_MODES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
def test_every_mode_computes_the_same_bits(pair, mode, shared, gradient):
    found = []
    for blob, layout, bias in pair:
        x = torch.randn(2, 9, K, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_(gradient)
        slot = SharedInput() if shared else None
        found.append(apply_blob(blob, layout.to_json(), bias, x, mode, shared=slot))
    assert torch.equal(*found)


def test_codes_in_an_arena_stay_in_their_place(wanted):
    rows = part()
    arena = Arena(sum(aligned(tensor.nbytes) for tensor in rows.tensors.values()))
    placed = with_tensors(rows, **{name: arena.copy(tensor) for name, tensor in rows.tensors.items()})
    ordered = lay_out(placed, CPU, arena)
    assert ordered["qweight"].data_ptr() == placed["qweight"].data_ptr()
    assert torch.equal(as_rows(ordered)["qweight"], rows["qweight"])
    blob, _ = to_blob(QuantizedLayer(K, N, (ordered,), None, arena=arena))
    assert blob.data_ptr() == arena.memory.data_ptr()


def test_codes_elsewhere_are_left_as_they_are(wanted):
    rows = part()
    before = rows["qweight"].clone()
    lay_out(rows, CPU)
    assert torch.equal(rows["qweight"], before)


@pytest.fixture
def ada(monkeypatch):
    row = next(row for row in gpus.GENERATIONS if row.name == "sm_89")
    monkeypatch.setattr(path, "generation", lambda _device: row)
    monkeypatch.setattr(path, "why_no_triton", lambda _device: None)
    monkeypatch.setattr(four_bit, "why_no_language", lambda _kernel: None)
    monkeypatch.setattr(measured_order, "_first", {})
    return monkeypatch


def test_only_where_the_first_path_reads_them(ada):
    def kept(one):
        return layer_paths.keeps_fragments(one.scheme, one.tensors, one.act_unsigned, GPU)

    assert kept(part())
    assert not kept(part("nvfp4")) and not kept(part(n=72))
    wide = with_tensors(part(), wscales=part()["wscales"].float())
    assert not kept(wide)
    sizes = sizes_of("int4", part().tensors, False)
    try_first(GPU, sizes, "w4a4", "comfy-kitchen's INT4 products")
    assert not kept(part())
    ada.setattr(path, "generation", lambda _device: next(row for row in gpus.GENERATIONS if row.name == "sm_90"))
    measured_order._first.clear()
    assert not kept(part())


def test_the_native_path_takes_them_without_a_copy(ada):
    """What the kernel is given is the blob's own memory; from rows it makes the same words."""
    pytest.importorskip("triton.experimental.gluon.language.nvidia.ampere", reason="no Gluon for Ampere")
    from svdquant_pack.kernels.step import gemm_w4a4_native as native

    given = []
    ada.setattr(native, "launch", lambda _kernel, _grid, arguments, _constants: given.append(arguments))
    one = part()
    fragments = to_weight_fragments(one["qweight"])
    codes, scales = torch.zeros(128, K // 2, dtype=torch.int8), torch.zeros(K // 64, 128, dtype=torch.bfloat16)
    branch = {"x_down": torch.zeros(5, 16).bfloat16(), "proj_up": one["proj_up"]}
    for qweight in (fragments, one["qweight"]):
        native.gemm_w4a4_native(codes, scales, qweight, one["wscales"], **branch)
    assert given[0][1].data_ptr() == fragments.data_ptr()
    assert torch.equal(given[0][1], given[1][1]) and given[0][8:] == given[1][8:]
