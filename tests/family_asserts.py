"""Whether a model that was read is what its file was made of."""

import numpy as np
import torch
from family_files import FamilyFile

from svdquant_pack.svdq_core.apply_layer import dense_bias, dense_weight
from svdquant_pack.svdq_core.quantized_model import QuantizedModel

CLOSE = 1e-6  # of the largest value: float32 arithmetic against float64
CLOSE_BIAS = 1e-5


def assert_file(model: QuantizedModel, file: FamilyFile, close: float = CLOSE) -> None:
    """Every layer, bias and other tensor, and no more."""
    assert model.architecture.name == file.family.name
    assert set(model.layers) == set(file.weights)
    for name, layer in model.layers.items():
        weight, bias = dense_weight(layer).double().numpy(), dense_bias(layer)
        assert weight.shape == file.weights[name].shape, name
        assert np.abs(weight - file.weights[name]).max() <= close * np.abs(file.weights[name]).max(), name
        truth = file.biases[name]
        assert (bias is None) == (truth is None), name
        if bias is not None and truth is not None:
            assert np.abs(bias.double().numpy() - truth).max() <= CLOSE_BIAS, name
    made = {"rope.inv_freq"} - file.plain.keys()  # what follows from a config and need not be stored
    plain = {name: t for name, t in model.plain.items() if not name.startswith("__") and name not in made}
    assert plain.keys() == file.plain.keys()
    assert [name for name, tensor in plain.items() if not torch.equal(tensor, file.plain[name])] == []
