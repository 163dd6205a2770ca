"""Files that a reader could take for something else: each mistake is noticed, in words, before anybody sees noise.

What nothing in a file tells (that w3 comes before w1, say) is held by the truth that test_dialect_cells.py compares.
"""

import pytest
import torch
from checkpoint_files import write_tensors
from dialect_cells import FUSED
from family_files import FamilyFile, minimax_h3, qwen_image
from fused_files import flux
from nunchaku_packer import NEWER

from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.errors import CheckpointError

OF_ROWS = ("qweight", "wscales", "proj_up", "lora_up", "wcscales")


def read(folder, tensors, base=None, metadata=None):
    second = write_tensors(folder / "base.safetensors", base) if base else None
    return read_checkpoint(Checkpoint(write_tensors(folder / "x.safetensors", tensors, metadata), second))


def test_halves_in_the_order_of_comfyui(tmp_path):
    """As if a writer had swapped them already: the second file shows it."""
    file = minimax_h3("int4")
    name = "transformer_blocks.0.ff.net.0.proj"
    for end in OF_ROWS:
        tensor = file.tensors.get(f"{name}.{end}")
        if tensor is not None:
            tiles = tensor.reshape(2, -1) if end != "wscales" else tensor.reshape(6, -1)
            file.tensors[f"{name}.{end}"] = tiles.roll(len(tiles) // 2, dims=0).reshape(tensor.shape)
    with pytest.raises(CheckpointError, match=r"mlp\.fc1\.weight is .*Rows in another order would look the same"):
        read(tmp_path, file.tensors, file.base)


@pytest.mark.parametrize("make", [lambda: qwen_image("int4"), lambda: flux("int4", newer=True)], ids=["qwen", "flux"])
def test_modulation_in_plain_order_under_nunchakus_names(make, tmp_path):
    """As Nunchaku Lite stores it, in a file that has what only nunchaku writes."""
    file: FamilyFile = make()
    for name in [n.removesuffix(".wzeros") for n in file.tensors if n.endswith(".wzeros")]:
        bias = file.tensors[f"{name}.bias"]
        file.tensors[f"{name}.bias"] = (
            torch.randn(bias.shape, generator=torch.Generator().manual_seed(1)).mul(0.1).bfloat16()
        )
    with pytest.raises(CheckpointError, match="the biases of its scales have no 1 added"):
        read(tmp_path, file.tensors)


@pytest.mark.parametrize("family", FUSED)
def test_two_spellings_in_one_file(family, tmp_path):
    """Half of the layers in older names, half in newer ones: no part of a layer is passed over in silence."""
    file = FUSED[family]("nvfp4" if family != "sdxl" else "int4")
    both = NEWER | {new: old for old, new in NEWER.items()}
    layers = sorted(name.removesuffix(".qweight") for name in file.tensors if name.endswith(".qweight"))
    other = set(layers[::2])
    mixed = {}
    for name, tensor in file.tensors.items():
        layer, _, end = name.rpartition(".")
        mixed[f"{layer}.{both.get(end, end)}" if layer in other else name] = tensor
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, mixed, file.base)
    assert str(caught.value).startswith("x.safetensors: ")


@pytest.mark.parametrize("family", ["zimage", "krea2", "qwen_image", "flux2"])
def test_a_layer_of_another_width(family, tmp_path):
    """A source that holds several Linears, cut: its pieces would be others."""
    file = FUSED[family]("nvfp4")
    fused = next(n for n in file.tensors if n.endswith(("to_qkv.qweight", "to_qkv_gate.qweight")))
    name = fused.removesuffix(".qweight")
    rows = file.tensors[fused].shape[0] - 128
    for end in OF_ROWS:
        tensor = file.tensors.get(f"{name}.{end}")
        if tensor is not None:
            dim = 1 if end == "wscales" else 0
            raw = tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor
            file.tensors[f"{name}.{end}"] = raw.narrow(dim, 0, rows).contiguous().view(tensor.dtype)
    if f"{name}.bias" in file.tensors:
        file.tensors[f"{name}.bias"] = file.tensors[f"{name}.bias"][:rows].clone()
    with pytest.raises(CheckpointError, match=r"do not split|expected|whole tiles"):
        read(tmp_path, file.tensors)
