"""Ways to damage a safetensors file, each with whether a reader may still accept it.

A mutation takes a random source and the parts of a file, and returns new bytes and `legal`: True where the result
still describes a model of the same structure (a value changed, an optional tensor gone, a note in the metadata), so
that a reader may accept or refuse it; False where accepting it would be an error.
"""

import json
import struct
from collections.abc import Callable
from random import Random

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

Mutation = Callable[[Random, "Original"], tuple[bytes, bool]]

# ends of names that a file may lack: what is informational, or 1 by default, or of a layer that is summed with another
OPTIONAL = ("smooth_orig", "smooth_factor_orig", "wtscale", "wcscales", "single_transformer_blocks.0.out_proj.bias")
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
SMOOTHING = (".smooth", ".smooth_factor", ".weight_smooth_factor")
DOWN = (".lora_down", ".proj_down", ".weight_proj_down")


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


def metadata(random: Random, file: Original) -> tuple[bytes, bool]:
    values = ["", "{", "[]", "null", "3", "[" * 50_000, '{"num_layers": 7}', '{"layers": 5}', '{"layers": {"a": 1}}']
    values.append('{"runtime_manifest": 1}')
    keys = ["config", "quantization_config", "_quantization_metadata", "comfy_config", "model_class"]
    return file.with_tensors({}, file.metadata | {random.choice(keys): random.choice(values)}), True


def drop(random: Random, file: Original) -> tuple[bytes, bool]:
    name = file.pick(random)
    return file.with_tensors({name: None}), name.endswith(OPTIONAL)


def cast(random: Random, file: Original) -> tuple[bytes, bool]:
    name = file.pick(random)
    tensor = file.tensors[name]
    dtype = random.choice([torch.float64, torch.int64, torch.int32, torch.uint8, torch.int8, torch.bool, *FLOATS])
    legal = dtype == tensor.dtype or (tensor.dtype in FLOATS and dtype in FLOATS)
    legal |= {dtype, tensor.dtype} == {torch.uint8, torch.int8} and name.endswith("comfy_quant")
    return file.with_tensors({name: tensor.to(dtype)}), legal


def reshape(random: Random, file: Original) -> tuple[bytes, bool]:
    name = file.pick(random)
    tensor = file.tensors[name]
    shape = random.choice(
        [(-1,), (1, -1), (-1, 1), tuple(reversed(tensor.shape)), (*tensor.shape, 1), (1, *tensor.shape)]
    )
    changed = tensor.reshape(shape)
    scalar = name.endswith("wtscale") and changed.ndim < 2
    return file.with_tensors({name: changed}), changed.shape == tensor.shape or scalar


def cut(random: Random, file: Original) -> tuple[bytes, bool]:
    """Fewer rows or columns of one tensor."""
    name = file.pick(random)
    tensor = file.tensors[name]
    if tensor.ndim == 0 or tensor.numel() == 0:
        return file.data, True
    dim = random.randrange(tensor.ndim)
    size = random.randrange(tensor.shape[dim])
    free = name.endswith(
        ("norm_q.weight", "norm_k.weight", "norm_added_q.weight", "norm_added_k.weight", "_norm.scale")
    )
    free |= name.endswith(("_norm.weight", "comfy_quant", "svdq_layout"))  # any size, or read as something else
    inputs = ("_embedder.weight", "text_embedder.linear_1.weight", "vector_in.in_layer.weight", "img_in.weight")
    inputs += ("txt_in.weight", "caption_projection.linear_1.weight", "y_proj.fc1.weight")
    free |= dim == 1 and name.endswith(inputs)
    outputs = ("proj_out.weight", "final_layer.linear.weight", "pos_embed.proj.weight", "x_embedder.proj.weight")
    free |= name.endswith(outputs)
    free |= name.endswith(("wscales", "wzeros")) and size >= 4  # rows of zeros that pad the scales of modulation
    return file.with_tensors({name: tensor.narrow(dim, 0, size)}), bool(free)


def not_finite(random: Random, file: Original) -> tuple[bytes, bool]:
    names = [n for n in file.names if file.tensors[n].is_floating_point() and file.tensors[n].numel()]
    name = random.choice(names)
    tensor = file.tensors[name].clone()
    index = random.randrange(tensor.numel())
    if tensor.element_size() == 1:
        tensor.view(torch.uint8).view(-1)[index] = random.choice([0x7F, 0xFF])
    else:
        tensor.view(-1)[index] = random.choice([float("nan"), float("inf"), -float("inf")])
    padding = name.endswith(("wscales", "wzeros")) and tensor.ndim == 2 and index // tensor.shape[1] >= 4  # never read
    return file.with_tensors({name: tensor}), padding and tensor.shape[0] == 16 and tensor.element_size() == 2


def zero_smoothing(random: Random, file: Original) -> tuple[bytes, bool]:
    name = file.pick(random, *SMOOTHING)
    if name is None:
        return file.data, True
    tensor = file.tensors[name].clone()
    tensor[random.randrange(tensor.numel())] = 0
    return file.with_tensors({name: tensor}), False


def rank(random: Random, file: Original) -> tuple[bytes, bool]:
    """Another rank: in both halves of a branch, or in one."""
    down = file.pick(random, *DOWN)
    if down is None:
        return file.data, True
    end = next(e for e in DOWN if down.endswith(e))
    up = down.removesuffix(end) + end.replace("down", "up")
    tiled = file.tensors[up].ndim == 3
    size, both = min(random.choice([0, 1, 7, 15, 16, 24]), file.tensors[down].shape[1]), random.random() < 0.6
    changes: dict[str, Tensor | None] = {down: file.tensors[down][:, :size]}
    if both:
        changes[up] = file.tensors[up][:, :size]
    same = size == file.tensors[down].shape[1]
    packed = end in (".lora_down", ".proj_down") and f"{down.removesuffix(end)}.qweight" in file.tensors
    legal = same or (both and (not packed or size % 16 == 0))
    return file.with_tensors(changes), legal or (tiled and both)


def stranger(random: Random, file: Original) -> tuple[bytes, bool]:
    base = file.pick(random)
    name = random.choice(["extra", base + ".more", "double_blocks.0.new.weight", "transformer_blocks.0.new.qweight"])
    return file.with_tensors({name: torch.ones(3)}), False


def other_dialect(random: Random, file: Original) -> tuple[bytes, bool]:
    """A layer in the words of another format beside its own."""
    config = torch.tensor(list(b'{"format": "svdquant_w4a4"}'), dtype=torch.uint8)
    additions = {
        "transformer_blocks.0.qkv_proj.qweight": torch.ones(128, 64, dtype=torch.int8),
        "double_blocks.0.img_attn.qkv.comfy_quant": config,
        "double_blocks.0.img_attn.qkv.svdq_layout": config,
    }
    fresh = [n for n in additions if n not in file.tensors]
    name = random.choice(fresh)
    return file.with_tensors({name: additions[name]}), False


def block_index(random: Random, file: Original) -> tuple[bytes, bool]:
    """A block at another place, near or absurdly far."""
    index = random.choice(["1", "2", "57", "999", "1000", "99999999999", "9" * 5000, "²", "-1", "0x1"])
    prefix = random.choice(sorted({n.split(".0.")[0] for n in file.names if "blocks.0." in n}))
    moved = {n: t for n, t in file.tensors.items() if n.startswith(f"{prefix}.0.")}
    changes: dict[str, Tensor | None] = {n.replace(".0.", f".{index}.", 1): t for n, t in moved.items()}
    if random.random() < 0.5:
        changes |= dict.fromkeys(moved)
    # without a config that says how many there are, one block more is a larger model
    larger = index == "1" and "config" not in file.metadata and not any(v is None for v in changes.values())
    return file.with_tensors(changes), larger


def layer_config(random: Random, file: Original) -> tuple[bytes, bool]:
    """The JSON of one comfy-native layer or of one packed layer."""
    name = file.pick(random, ".comfy_quant", ".svdq_layout")
    if name is None:
        return file.data, True
    values = [b"", b"{", b"[]", b"null", b"{}", b'{"format": 3}', b'{"format": "nf4"}', b"\xff\xfe", b"[" * 50_000]
    values.append(b'{"format": "svdquant_w4a4", "layout": "other"}')
    values.append(b'{"format": "svdquant_w4a4", "svdquant_part_rows": [0], "svdquant_part_ranks": [-1]}')
    content = random.choice(values)
    return file.with_tensors({name: torch.tensor(list(content), dtype=torch.uint8)}), False


ALL: tuple[Mutation, ...] = (
    truncate,
    append,
    noise,
    header_length,
    header_bytes,
    data_bytes,
    header_entry,
    duplicate_key,
    deep_header,
    metadata,
    drop,
    cast,
    reshape,
    cut,
    not_finite,
    zero_smoothing,
    rank,
    stranger,
    other_dialect,
    block_index,
    layer_config,
)
