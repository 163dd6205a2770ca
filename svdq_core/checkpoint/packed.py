"""Files that the host's own save nodes write from an SVDQuant MODEL: host names, one packed weight for each layer.

`<layer>.weight` is the blob of layer.py, `<layer>.svdq_layout` its BlobLayout as JSON bytes, the rest ordinary tensors.
"""

from ..errors import CheckpointError
from ..layer import BlobLayout, QuantizedLayer
from ..model import QuantizedModel
from ..models import ARCHITECTURES, SUPPORTED, Architecture
from .container import Checkpoint

LAYOUT_SUFFIX = ".svdq_layout"


def is_packed(checkpoint: Checkpoint) -> bool:
    return any(name.endswith(LAYOUT_SUFFIX) for name in checkpoint)


def read_packed(checkpoint: Checkpoint) -> QuantizedModel:
    """Read a file saved by the host's ModelSave or CheckpointSave.

    Raises:
        CheckpointError: a layout is damaged or does not fit its weight, or the model is of an unknown family.
    """
    model = QuantizedModel(_architecture(checkpoint))
    layers = [name.removesuffix(LAYOUT_SUFFIX) for name in checkpoint if name.endswith(LAYOUT_SUFFIX)]
    for name in layers:
        where = f"{checkpoint.name}: {name}"
        bias = f"{name}.bias"
        try:
            layout = BlobLayout.from_json(bytes(checkpoint[name + LAYOUT_SUFFIX].tolist()).decode())
            layer = layout.read(checkpoint[f"{name}.weight"], checkpoint.get(bias))
        except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"{where}: its layout does not fit its weight ({error}). The file is damaged."
            ) from error
        for part in layer.parts:
            part.check(where)
        model.layers[name] = QuantizedLayer(layer.in_features, layer.out_features, layer.parts, layer.bias)
    taken = {f"{name}.{end}" for name in layers for end in ("weight", "bias", LAYOUT_SUFFIX[1:])}
    model.plain = {name: checkpoint[name] for name in checkpoint if name not in taken}
    return model


def _architecture(checkpoint: Checkpoint) -> Architecture:
    names = set(checkpoint)
    for architecture in ARCHITECTURES.values():
        if all(f"{b.host}.0.{b.linears[0].host}.weight" in names for b in architecture.blocks):
            return architecture
    raise CheckpointError(f"{checkpoint.name}: packed layers of an unknown model. Supported: {SUPPORTED}.")
