"""weights: channel scales are those that w4a8 finds by itself."""

import pytest
from compare import assert_same
from layer_calls import run_layer
from problems import activations, int4_layer, nvfp4_layer

from svdquant_pack.kernels import reference
from svdquant_pack.kernels.layer_call import COMPUTE_MODES
from svdquant_pack.kernels.part_weights import dequantize, find_channel_scales

LAYERS = {"int4": int4_layer, "nvfp4": nvfp4_layer}


@pytest.mark.parametrize("compute", COMPUTE_MODES)
@pytest.mark.parametrize("scheme", LAYERS)
def test_channel_scales_change_nothing(compute, scheme, dtype, device):
    x, tensors = activations(19, 192, dtype, device), LAYERS[scheme](72, 192, 16, dtype, device)
    with_scales = {**tensors, "channel_scales": find_channel_scales(tensors, scheme)}
    assert_same(with_scales["channel_scales"], reference.requantize_int8(dequantize(tensors, scheme)).channel_scales)
    assert_same(run_layer(x, with_scales, scheme, compute), run_layer(x, tensors, scheme, compute))
