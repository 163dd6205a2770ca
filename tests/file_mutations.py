"""Ways to damage the bytes and the header of a safetensors file, each with whether a reader may still accept it.

A mutation takes a random source and the parts of a file, and returns new bytes and `legal`: True where the result
still describes a model of the same structure (a value changed, an optional tensor gone, a note in the metadata), so
that a reader may accept or refuse it; False where accepting it would be an error.
"""

import json
import struct
from collections.abc import Callable
from random import Random

import safetensors
from safetensors.torch import save
from torch import Tensor

Mutation = Callable[[Random, "Original"], tuple[bytes, bool]]


class Original:
    """A sound file: its bytes, header and tensors."""

    def __init__(self, data: bytes):
        self.data = data
        (self.header_bytes,) = struct.unpack("<Q", data[:8])
        self.header: dict = json.loads(data[8 : 8 + self.header_bytes])
        self.metadata: dict[str, str] = self.header.get("__metadata__", {})
        self.body = data[8 + self.header_bytes :]
        self.tensors: dict[str, Tensor] = safetensors.torch.load(data)
        self.names = sorted(self.tensors)

    def with_header(self, header: object) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + self.body

    def with_tensors(self, changes: dict[str, Tensor | None], metadata: dict[str, str] | None = None) -> bytes:
        """Tensors added or replaced; None takes one out."""
        tensors = {n: t for n, t in (self.tensors | changes).items() if t is not None}
        return save({n: t.contiguous().clone() for n, t in tensors.items()}, metadata or self.metadata or None)

    def pick(self, random: Random, *ends: str) -> str | None:
        names = [n for n in self.names if n.endswith(ends)] if ends else self.names
        return random.choice(names) if names else None


def truncate(random: Random, file: Original) -> tuple[bytes, bool]:
    return file.data[: random.randrange(len(file.data))], False


def append(random: Random, file: Original) -> tuple[bytes, bool]:
    return file.data + random.randbytes(random.randint(1, 100)), False


def noise(random: Random, file: Original) -> tuple[bytes, bool]:
    return random.randbytes(random.randint(0, 300)), False


def header_length(random: Random, file: Original) -> tuple[bytes, bool]:
    length = random.choice(
        [0, 1, 2**64 - 1, 2**63, 100_000_001, len(file.data), random.getrandbits(64), random.getrandbits(20)]
    )
    return struct.pack("<Q", length) + file.data[8:], length == file.header_bytes


def header_bytes(random: Random, file: Original) -> tuple[bytes, bool]:
    text = bytearray(file.data[8 : 8 + file.header_bytes])
    for _ in range(random.randint(1, 4)):
        text[random.randrange(len(text))] = random.randrange(256)
    return file.with_header(bytes(text)), _same_tensors(bytes(text), file)


def _same_tensors(text: bytes, file: Original) -> bool:
    """Whether a header still says the same of every tensor; 16-bit types look alike where nothing else is known."""
    try:
        header = json.loads(text)
        pairs = [(header[name], file.header[name]) for name in file.names]
        sized = all({**new, "dtype": ""} == {**old, "dtype": ""} for new, old in pairs)
        typed = all(
            new["dtype"] == old["dtype"] or {new["dtype"], old["dtype"]} == {"BF16", "F16"} for new, old in pairs
        )
        return sized and typed and len(header) - ("__metadata__" in header) == len(file.names)
    except (ValueError, LookupError, TypeError):
        return False


def data_bytes(random: Random, file: Original) -> tuple[bytes, bool]:
    body = bytearray(file.body)
    for _ in range(random.randint(1, 20)):
        body[random.randrange(len(body))] = random.randrange(256)
    return file.data[: 8 + file.header_bytes] + bytes(body), True


def header_entry(random: Random, file: Original) -> tuple[bytes, bool]:
    """Shape, dtype, offsets or name of one tensor."""
    header, name = json.loads(json.dumps(file.header)), file.pick(random)
    entry = header[name]
    kind = random.choice(["shape", "dtype", "offsets", "rename", "remove", "type"])
    if kind == "shape":
        shapes = [
            [],
            [0],
            [2**63],
            [10**7, 10**7],
            [-1, *entry["shape"]],
            entry["shape"][::-1],
            [*entry["shape"], 1],
            None,
        ]
        entry["shape"] = random.choice(shapes)
    elif kind == "dtype":
        entry["dtype"] = random.choice(
            ["F64", "I64", "I32", "U8", "BOOL", "F8_E5M2", "F4", "C64", "nonsense", "", None]
        )
    elif kind == "offsets":
        begin, end = entry["data_offsets"]
        entry["data_offsets"] = random.choice(
            [
                [0, 10**14],
                [end, begin],
                [begin, end + 1],
                [begin + 1, end],
                [0, 0],
                [-8, end],
                [begin],
                [2**64, 2**64 + 1],
            ]
        )
    elif kind == "rename":
        new = random.choice(
            ["", "..", "../../" + name, "/etc/passwd", name + "\0", name.upper(), "x." + name, name[1:]]
        )
        header[new] = header.pop(name)
    elif kind == "remove":
        del header[name]
    else:
        header[name] = random.choice([None, 3, [], {}, "BF16"])
    return file.with_header(header), header == file.header


def duplicate_key(random: Random, file: Original) -> tuple[bytes, bool]:
    """The same name twice in the JSON, with other offsets."""
    first, second = random.sample(file.names, 2)
    text = json.dumps(file.header)
    extra = json.dumps({first: file.header[second]})[1:-1]
    return file.with_header((text[:-1] + "," + extra + "}").encode()), False


def deep_header(random: Random, file: Original) -> tuple[bytes, bool]:
    depth = random.choice([50, 1000, 200_000])
    return file.with_header(b'{"a":' + b"[" * depth + b"]" * depth + b"}"), False


# what can happen to a file whatever it holds
OF_ANY_FILE: tuple[Mutation, ...] = (
    truncate,
    append,
    noise,
    header_length,
    header_bytes,
    data_bytes,
    header_entry,
    duplicate_key,
    deep_header,
)
