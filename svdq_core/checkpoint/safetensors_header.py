"""The header of a safetensors file: which tensor lies where, every claim checked against the file's size.

Eight bytes say how long the header is; it is JSON, name -> dtype, shape and the bytes between which the tensor lies
behind it; they must follow each other without holes up to the end of the file. "__metadata__" holds texts.
Source: the format's description at github.com/huggingface/safetensors.
"""

import json
from dataclasses import dataclass
from math import prod

MOST_HEADER_BYTES = 32 << 20  # the format allows 100 MB; the largest models have less than 3
MOST_DIMS = 64
MOST_NAMES = 100_000  # tensors; the largest models have less than 20 000
METADATA = "__metadata__"
BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}


class HeaderError(ValueError):
    """What is wrong with a header, without the file's name."""


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies: from `begin` to `end` behind the header, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def parse_header(text: bytes, data_bytes: int) -> tuple[dict[str, str], dict[str, TensorPlace]]:
    """Metadata and places of a header.

    Args:
        text: the JSON. data_bytes: how many bytes follow it in the file.

    Raises:
        HeaderError: it is no such header, or says what the file cannot hold.
    """
    count = text.count(b'"data_offsets"')  # parsing hundreds of thousands would take seconds
    if count > MOST_NAMES:
        raise HeaderError(f"{count} tensors, more than any model has ({MOST_NAMES})")
    try:
        entries = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"its header is not JSON: {str(error)[:100]}") from error
    if not isinstance(entries, dict) or text[:1] != b"{":
        raise HeaderError("its header is not a JSON object")
    metadata = entries.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(_is_text(t) for pair in metadata.items() for t in pair):
        raise HeaderError(f"{METADATA} is not a table of texts")
    if len(entries) > MOST_NAMES:
        raise HeaderError(f"{len(entries)} names, more than any model has ({MOST_NAMES})")
    places = {name: _place(name, entry) for name, entry in entries.items()}
    at = 0
    for place, name in sorted(((p, n) for n, p in places.items()), key=lambda pair: (pair[0].begin, pair[0].end)):
        if place.begin != at:
            raise HeaderError(f"{_short(name)} begins at byte {place.begin}, expected {at}")
        at = place.end
    if at != data_bytes:
        raise HeaderError(f"its tensors take {at} bytes, and {data_bytes} follow the header")
    return metadata, places


def _place(name: str, entry: object) -> TensorPlace:
    if not isinstance(entry, dict):
        raise HeaderError(f"{_short(name)} is not described by a table")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise HeaderError(f"{_short(name)} has an unknown dtype, {_short(str(dtype))}")
    shape, offsets = _sizes(name, shape), _sizes(name, offsets)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderError(f"{_short(name)} lies between {_short(str(offsets))}")
    size = offsets[1] - offsets[0]
    if prod(shape) * BITS[dtype] != 8 * size:
        raise HeaderError(f"{_short(name)}, {dtype} of shape {_short(str(shape))}, is said to take {size} bytes")
    return TensorPlace(dtype, shape, *offsets)


def _sizes(name: str, values: object) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > MOST_DIMS or not all(type(v) is int for v in values):
        raise HeaderError(f"{_short(name)} has no sound shape and place")
    if not all(0 <= v < 2**63 for v in values):
        raise HeaderError(f"{_short(name)} has a size that cannot be")
    return tuple(values)


def _is_text(value: object) -> bool:
    """Half of a pair of surrogates is none: it could not be written again."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{_short(twice)} stands there twice")
    return found


def _short(text: str) -> str:
    return text if len(text) <= 60 and text.isprintable() else f"{text[:60]!r}..."
