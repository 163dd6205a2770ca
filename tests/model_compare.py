"""Whether two models in memory are the same, bit for bit."""

from checkpoint_files import fingerprint

from svdquant_pack.svdq_core.layer import QuantizedLayer
from svdquant_pack.svdq_core.quantized_model import QuantizedModel


def differences(left: QuantizedModel, right: QuantizedModel) -> list[str]:
    """What differs, in words: names, shapes of parts, dtypes, bits."""
    found = [f"only in one: {name}" for name in sorted(set(left.layers) ^ set(right.layers))]
    found += [f"only in one: {name}" for name in sorted(set(left.plain) ^ set(right.plain))]
    for name in left.layers.keys() & right.layers.keys():
        found += [f"{name}: {text}" for text in layer_differences(left.layers[name], right.layers[name])]
    for name in left.plain.keys() & right.plain.keys():
        if fingerprint(left.plain[name]) != fingerprint(right.plain[name]):
            found.append(f"{name}: other bits")
    return found


def layer_differences(left: QuantizedLayer, right: QuantizedLayer) -> list[str]:
    """What differs between two layers, in words."""
    found = []
    if (left.bias is None) != (right.bias is None) or (
        left.bias is not None and fingerprint(left.bias) != fingerprint(right.bias)
    ):
        found.append("bias")
    kinds = [[(p.scheme, p.rows, p.columns, p.act_unsigned) for p in layer.parts] for layer in (left, right)]
    if kinds[0] != kinds[1]:
        return [*found, f"parts {kinds[0]} and {kinds[1]}"]
    for index, (part, other) in enumerate(zip(left.parts, right.parts, strict=True)):
        names = part.tensors.keys() | other.tensors.keys()
        found += [f"part {index} {n}" for n in names if print_of(part, n) != print_of(other, n)]
    return found


def print_of(part, name):
    tensor = part.get(name)
    return None if tensor is None else fingerprint(tensor)
