"""Files against each other: by every tensor's bits, and by the dense model that they stand for."""

from checkpoint_files import fingerprint, read_tensors

from svdquant_pack.svdq_core.apply_layer import dense_bias, dense_weight
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint


def prints(path):
    """Name -> fingerprint of every tensor of a file."""
    return {name: fingerprint(tensor) for name, tensor in read_tensors(path)[0].items()}


def dense_model(path):
    """Name -> float32 tensor of the model without quantization, low-rank branches included."""
    model = read_checkpoint(Checkpoint(path))
    found = {name: tensor.float() for name, tensor in model.plain.items()}
    for name, layer in model.layers.items():
        found[f"{name}.weight"], found[f"{name}.bias"] = dense_weight(layer), dense_bias(layer)
    return found


def assert_equivalent(left, right, limit=1e-6):
    """The same dense model: the largest difference of each tensor, relative to its largest value."""
    first, second = dense_model(left), dense_model(right)
    assert first.keys() == second.keys()
    for name in first:
        error = float((first[name] - second[name]).abs().max()) / float(first[name].abs().max())
        assert error <= limit, f"{name}: {error}"
