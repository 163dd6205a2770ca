"""Writing comfy-native files: the host's own names, tensors in plain order, a small JSON beside each such layer."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from ..errors import ArchitectureError
from ..layer import Part, QuantizedLayer
from ..quantized_model import QuantizedModel
from ..schemes import KEPT
from ..stack import join_rows
from .comfy_layers import joined_config, pack_awq, pack_svdquant
from .comfy_names import AWQ, CONFIG, CONFIGS, PART, STACKED, SUFFIXES, SVDQUANT, config_tensor
from .output import Output, whole
from .writer import Format


class ComfyFormat(Format):
    """The natural layout of comfy-kitchen's svdquant_w4a4 and awq_w4a16."""

    title = "comfy-native"

    def layer_outputs(self, host: str, layer: QuantizedLayer) -> Iterator[Output]:
        if any(part.scheme == "nvfp4" for part in layer.parts):
            raise ArchitectureError(
                f"{host} is NVFP4, and the comfy-native SVDQuant format holds 4-bit integers only. Write nunchaku or "
                "bf16."
            )
        if any(part.scheme == "int8" for part in layer.parts):
            raise ArchitectureError(
                f"{host} has 8-bit weights with smoothing and a low-rank branch, and comfy-native int8 layers have "
                "neither. Write svdquant or bf16."
            )
        if any(part.scheme == "awq" and part.rank for part in layer.parts):
            raise ArchitectureError(
                f"{host} carries a LoRA, and the comfy-native format of modulation layers has no place for one. Write "
                "nunchaku or bf16, or take the LoRA off."
            )
        if any(part.width != part.in_features for part in layer.parts):
            raise ArchitectureError(
                f"{host} has {layer.in_features} inputs, no multiple of 64, and the comfy-native format has no place "
                "for columns of zeros that fill them up. Write svdquant or bf16."
            )
        joined = join_rows(layer.parts)
        if joined is not None and joined.columns == (0, layer.in_features):
            yield from self._layer(host, joined, layer.bias, layer.parts)
            return
        reason, names = _reason(layer.parts), f"{PART}.0 to {len(layer.parts) - 1}"
        if self.strict:
            raise ArchitectureError(
                f"{host} has {reason}. Without --strict it is written as {names}, which only this pack reads."
            )
        kind = host.rpartition(".")[2]
        self.note(f"{kind} has {reason}: it was written as {kind}.{names}, which only this pack reads.")
        for index, part in enumerate(layer.parts):
            last = part.columns[1] == layer.in_features
            bias = layer.bias[part.rows[0] : part.rows[1]] if last and layer.bias is not None else part.get("bias")
            stacked = "rows" if part.columns == (0, layer.in_features) else "columns"
            yield from self._layer(f"{host}.{PART}.{index}", part, bias, [part], {STACKED: stacked})

    def plain_outputs(self, host: str, tensor: Tensor) -> Iterator[Output]:
        yield whole(host, tensor)

    def metadata(self, outline: QuantizedModel) -> dict[str, str]:
        kept = super().metadata(outline)
        return {key: text for key, text in kept.items() if key != CONFIGS}

    def _layer(
        self, name: str, part: Part, bias: Tensor | None, parts: Sequence[Part], more: dict | None = None
    ) -> Iterator[Output]:
        kind, pack = (AWQ, pack_awq) if part.scheme == "awq" else (SVDQUANT, pack_svdquant)
        tensors, config = pack(part)
        if bias is not None:
            tensors["bias"] = bias
        for canonical, tensor in tensors.items():
            if self.strict and canonical in KEPT:
                continue
            yield whole(f"{name}.{SUFFIXES[kind][canonical][0]}", tensor)
        joined = {} if self.strict else joined_config(parts)
        yield whole(f"{name}.{CONFIG}", config_tensor(config | joined | (more or {})))


def _reason(parts: Sequence[Part]) -> str:
    """Why a layer is not one layer in this format."""
    if len({part.act_unsigned for part in parts}) > 1:
        return "signed and unsigned activations side by side, and a comfy-native layer has one kind"
    return "parts that do not share their smoothing, and a comfy-native layer has one"
