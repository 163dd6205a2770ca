"""What a Linear becomes when its weight arrives: ours, the host's own, or a sentence."""

import comfy.ops
import pytest
import torch
from families.models import random_part

from svdquant_pack.nodes.host.model.placeholder import Packed, is_empty_shape, packed_of, placeholder
from svdquant_pack.nodes.host.model.quantized_linear import (
    LAYOUT_KEY,
    SVDQuantLinear,
    is_quantized,
    layout_to_tensor,
    operations,
)
from svdquant_pack.svdq_core.apply_layer import dense_weight
from svdquant_pack.svdq_core.blob import to_blob
from svdquant_pack.svdq_core.errors import ArchitectureError
from svdquant_pack.svdq_core.layer import QuantizedLayer


def packed(outputs: int = 96, inputs: int = 128) -> tuple[QuantizedLayer, Packed]:
    layer = QuantizedLayer(inputs, outputs, (random_part("int4", (0, outputs), (0, inputs), "shared", "own"),))
    return layer, Packed(*to_blob(layer))


def loaded(state: dict, inputs: int = 128, outputs: int = 96, bias: bool = True):
    """A model of one Linear, and the names that were missing."""
    model = torch.nn.Sequential(operations("w4a16").Linear(inputs, outputs, bias=bias, dtype=torch.float32))
    return model[0], model.load_state_dict({f"0.{name}": tensor for name, tensor in state.items()}, strict=False)


def test_a_placeholder_has_shape_and_dtype_and_no_memory():
    _, given = packed()
    weight = placeholder(given, torch.float16)
    assert tuple(weight.shape) == (96, 128) and weight.dtype == torch.float16
    assert weight.untyped_storage().nbytes() == 2 and packed_of(weight) is given
    assert is_empty_shape(weight) and is_empty_shape(weight[:32]) and packed_of(weight[:32]) is None


@pytest.mark.parametrize("saved", [False, True], ids=["on its way in", "as the host saves it"])
def test_a_blob_makes_a_quantized_layer_that_is_a_linear(saved):
    layer, given = packed()
    state = {"weight": given.blob, LAYOUT_KEY: layout_to_tensor(given.layout)} if saved else {}
    module, (missing, unexpected) = loaded(state or {"weight": placeholder(given, torch.bfloat16)}, bias=False)
    assert isinstance(module, SVDQuantLinear) and isinstance(module, torch.nn.Linear) and module.quantized
    assert not missing and set(unexpected) <= {f"0.{LAYOUT_KEY}"}
    x = torch.randn(3, 128)
    assert torch.allclose(module(x), x @ dense_weight(layer).T, atol=1e-4)


def test_other_layers_are_the_hosts_own():
    weight, bias = torch.randn(96, 128).bfloat16(), torch.randn(96).bfloat16()
    module, _ = loaded({"weight": weight, "bias": bias})
    assert type(module) is comfy.ops.manual_cast.Linear
    assert module.weight.dtype == torch.float32 and torch.equal(module.weight, weight.float())
    x = torch.randn(3, 128)
    assert torch.equal(module(x), torch.nn.functional.linear(x, weight.float(), bias.float()))


def test_what_a_file_lacks_is_zero_and_said():
    module, (missing, _) = loaded({})
    assert missing == ["0.weight", "0.bias"] and type(module) is comfy.ops.manual_cast.Linear
    assert not module(torch.randn(2, 128)).any()


def test_a_placeholder_that_was_cut_is_refused():
    _, given = packed(3 * 96)
    with pytest.raises(ArchitectureError, match="0: ComfyUI takes this layer apart"):
        loaded({"weight": placeholder(given, torch.bfloat16)[96:192]})


def test_other_sizes_are_refused():
    _, given = packed(96, 192)
    for weight in (placeholder(given, torch.bfloat16), torch.zeros(96, 192)):
        with pytest.raises(ArchitectureError, match="192 inputs and 96 outputs, the model of this architecture 128"):
            loaded({"weight": weight})
    with pytest.raises(ArchitectureError, match=r"shape \(96,\)"):
        loaded({"weight": torch.zeros(96)})


def test_a_model_of_this_pack_is_known(model, dense):
    assert is_quantized(model) and not is_quantized(dense)
    network = model.model.diffusion_model
    assert type(network.img_in) is comfy.ops.manual_cast.Linear  # other packs look at it
    assert isinstance(network.double_blocks[0].img_attn.qkv, torch.nn.Linear)
