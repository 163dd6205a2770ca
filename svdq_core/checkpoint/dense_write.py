"""Writing the dense model that a quantized one stands for: the host's names, bfloat16, nothing left to undo."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..apply_layer import dense_bias, dense_weight
from ..layer import QuantizedLayer
from ..quantized_model import QuantizedModel
from ..stack import slice_layer_rows
from .comfy_names import CONFIGS
from .output import Output, cast
from .writer import Format

BLOCK_VALUES = 1 << 22  # computed at a time, in float32


class DenseFormat(Format):
    """bfloat16 under the host's names: low-rank branch added, smoothing and GELU shift undone."""

    title = "bf16"

    def layer_outputs(self, host: str, layer: QuantizedLayer) -> Iterator[Output]:
        height = max(BLOCK_VALUES // layer.in_features, 1)
        slices = [
            slice_layer_rows(layer, start, min(start + height, layer.out_features))
            for start in range(0, layer.out_features, height)
        ]

        def weights() -> Iterable[Tensor]:
            return (cast(dense_weight(piece), torch.bfloat16, f"{host}.weight") for piece in slices)

        def biases() -> Iterable[Tensor]:
            found = (dense_bias(piece) for piece in slices)
            return (cast(bias, torch.bfloat16, f"{host}.bias") for bias in found if bias is not None)

        yield Output(f"{host}.weight", (layer.out_features, layer.in_features), torch.bfloat16, weights)
        if layer.bias is not None:
            yield Output(f"{host}.bias", (layer.out_features,), torch.bfloat16, biases)

    def plain_outputs(self, host: str, tensor: Tensor) -> Iterator[Output]:
        yield Output(host, tuple(tensor.shape), torch.bfloat16, lambda: [cast(tensor, torch.bfloat16, host)])

    def metadata(self, outline: QuantizedModel) -> dict[str, str]:
        kept = super().metadata(outline)
        return {key: text for key, text in kept.items() if key not in (CONFIGS, "quantization_config", "model_class")}
