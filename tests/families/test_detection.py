"""What the host takes a file for: the same with packed weights as with dense ones, at every published size."""

import comfy.utils
import pytest
import torch
from families.network import differing, without_memory
from families.registry import FAMILIES

from svdquant_pack.nodes.host.model.placeholder import Packed, placeholder
from svdquant_pack.svdq_core.blob import BlobLayout


def packed(outputs: int, inputs: int) -> torch.Tensor:
    layout = BlobLayout(inputs, outputs, ())
    return placeholder(Packed(torch.zeros(1, dtype=torch.uint8).expand(outputs * inputs), layout), torch.float16)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_packed_file_is_taken_for_the_dense_one(name):
    family = FAMILIES[name]
    dense = without_memory(family.published_shapes, torch.float16)
    found = family.detect(dense)
    assert found is not None and differing(found.unet_config, family.published) == []
    layers = family.published_layers
    assert layers
    state_dict = dense | {f"{layer}.weight": packed(*size) for layer, size in layers.items()}
    assert family.detect(state_dict).unet_config == found.unet_config
    assert comfy.utils.calculate_parameters(state_dict) == comfy.utils.calculate_parameters(dense)
    assert comfy.utils.weight_dtype(state_dict) == torch.float16
