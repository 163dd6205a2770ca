"""Writing this pack's own files: every layer as the host's own save nodes write it; any number format, nothing rounded.

Only packed.py reads them; other loaders find neither their layer names nor shapes that they know.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..blob import BlobLayout, to_blob
from ..layer import QuantizedLayer, with_tensors
from ..quantized_model import QuantizedModel
from ..stack import as_in_files
from .comfy_names import CONFIGS
from .group_pairs import pair_groups
from .output import Output, whole
from .packed import LAYOUT_SUFFIX, PACKED_METADATA
from .writer import Format


class PackedFormat(Format):
    """The host's names; one packed weight for each quantized layer."""

    title = "svdquant"

    def layer_outputs(self, host: str, layer: QuantizedLayer) -> Iterator[Output]:
        layer = pair_groups(replace(as_in_files(layer), bias=layer.bias, arena=None))
        blob, layout = to_blob(_on_meta(layer))
        yield Output(f"{host}.weight", tuple(blob.shape), torch.uint8, lambda: [to_blob(layer)[0]])
        yield whole(host + LAYOUT_SUFFIX, _as_bytes(layout))
        if layer.bias is not None:
            yield whole(f"{host}.bias", layer.bias)

    def plain_outputs(self, host: str, tensor: Tensor) -> Iterator[Output]:
        yield whole(host, tensor)

    def metadata(self, outline: QuantizedModel) -> dict[str, str]:
        kept = super().metadata(outline)
        kept = {key: text for key, text in kept.items() if key not in (CONFIGS, "quantization_config", "model_class")}
        words = "packed", outline.precision, "ComfyUI-SVDQuant only: one packed uint8 weight and its layout per layer"
        return kept | dict(zip(PACKED_METADATA, words, strict=True))


def _on_meta(layer: QuantizedLayer) -> QuantizedLayer:
    parts = tuple(with_tensors(part, **{n: t.to("meta") for n, t in part.tensors.items()}) for part in layer.parts)
    return QuantizedLayer(layer.in_features, layer.out_features, parts, input=layer.input)


def _as_bytes(layout: BlobLayout) -> Tensor:
    return torch.frombuffer(bytearray(layout.to_json().encode()), dtype=torch.uint8)
