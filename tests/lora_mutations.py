"""Ways to damage the tensors and names of a LoRA file, in the manner of file_mutations.py, and all of both.

A LoRA may lose, gain or rename tensors and still be one, so `legal` says only that a reader may take the result.
"""

import io
from random import Random

import file_mutations
import torch
from file_mutations import Mutation, Original
from torch import Tensor

SUFFIXES = (
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora_up.weight",
    ".lora_down.weight",
    ".lora_mid.weight",
    ".alpha",
    ".dora_scale",
    ".diff",
    ".diff_b",
    ".set_weight",
    ".lokr_w1",
    ".lokr_w2_a",
    ".lokr_t2",
    ".hada_w1_a",
    ".hada_w2_b",
    ".hada_t1",
    ".oft_blocks",
    ".a1.weight",
    ".b2.weight",
    ".w_norm",
    ".b_norm",
    ".reshape_weight",
    ".lora_B.bias",
    ".lora_A.default.weight",
    ".lora_magnitude_vector",
)
SHAPES = ((), (0,), (1,), (4,), (256,), (4, 256), (256, 4), (0, 256), (256, 0), (3, 4, 4), (2, 3, 4, 4), (256, 256))
BROKEN_VALUES = (float("nan"), float("inf"), -float("inf"))


def drop(random: Random, file: Original) -> tuple[bytes, bool]:
    """Some tensors are gone: halves of pairs, alphas."""
    return file.with_tensors(dict.fromkeys(random.sample(file.names, random.randint(1, 3)))), True


def cast(random: Random, file: Original) -> tuple[bytes, bool]:
    name = file.pick(random)
    dtypes = [torch.float64, torch.int64, torch.uint8, torch.int8, torch.bool, torch.float16, torch.float8_e4m3fn]
    return file.with_tensors({name: file.tensors[name].to(random.choice(dtypes))}), True


def reshape(random: Random, file: Original) -> tuple[bytes, bool]:
    name = file.pick(random)
    tensor = file.tensors[name]
    shapes = [(-1,), (1, -1), (-1, 1), (*tensor.shape, 1), (1, *tensor.shape), tuple(reversed(tensor.shape))]
    return file.with_tensors({name: tensor.reshape(random.choice(shapes))}), True


def cut(random: Random, file: Original) -> tuple[bytes, bool]:
    """Fewer rows or columns of one tensor, down to none: another rank, or another model's sizes."""
    name = file.pick(random, ".weight")
    tensor = file.tensors[name or file.names[0]]
    if tensor.ndim == 0 or tensor.numel() == 0:
        return file.data, True
    dim = random.randrange(tensor.ndim)
    return file.with_tensors({name or file.names[0]: tensor.narrow(dim, 0, random.randrange(tensor.shape[dim]))}), True


def not_finite(random: Random, file: Original) -> tuple[bytes, bool]:
    name = random.choice([n for n in file.names if file.tensors[n].is_floating_point() and file.tensors[n].numel()])
    tensor = file.tensors[name].clone()
    tensor.view(-1)[random.randrange(tensor.numel())] = random.choice(BROKEN_VALUES)
    return file.with_tensors({name: tensor}), True


def rank_zero(random: Random, file: Original) -> tuple[bytes, bool]:
    changes: dict[str, Tensor | None] = {}
    for name in file.names:
        if name.endswith(("lora_A.weight", "lora_down.weight")):
            changes[name] = file.tensors[name][:0]
        elif name.endswith(("lora_B.weight", "lora_up.weight")):
            changes[name] = file.tensors[name][:, :0]
    few = random.sample(sorted(changes), len(changes) // 2) if random.random() < 0.5 else sorted(changes)
    return file.with_tensors({name: changes[name] for name in few}), True


def stranger(random: Random, file: Original) -> tuple[bytes, bool]:
    """A tensor of any kind and shape more, on a layer that the file has."""
    base = file.pick(random).rsplit(".lora_", 1)[0].removesuffix(".alpha")
    tensor = torch.randn(random.choice(SHAPES), generator=torch.Generator().manual_seed(random.randrange(99)))
    return file.with_tensors({base + random.choice(SUFFIXES): tensor}), True


def other_kind(random: Random, file: Original) -> tuple[bytes, bool]:
    """Every tensor under another suffix: halves that belong to nothing."""
    renamed = {}
    for name in file.names:
        base = name.rsplit(".lora_", 1)[0].removesuffix(".alpha")
        renamed[base + random.choice(SUFFIXES)] = file.tensors[name]
    return file.with_tensors(dict.fromkeys(file.names) | renamed), True


def odd_names(random: Random, file: Original) -> tuple[bytes, bool]:
    name = file.pick(random)
    odd = ["", ".", "..weight", "\0", "a" * 20_000, "layer\nnext", "☃.lora_A.weight", "../" + name, "diffusion_model."]
    odd += ["transformer." * 2000 + name, name.upper(), name.replace(".0.", ".99999999999999999999.")]
    odd += [".lora_A.weight", "transformer.transformer_blocks.-1.attn.to_q.lora_A.weight", "lora_unet_" * 500]
    new = random.choice(odd)
    changes: dict[str, Tensor | None] = {name: None} if random.random() < 0.5 else {}
    return file.with_tensors({**changes, new: file.tensors[name]}), True


def converted_for_nunchaku(random: Random, file: Original) -> tuple[bytes, bool]:
    """Keys that make the file look converted, on tensors that are not."""
    names = ["qkv_proj", "mlp_fc1", "out_proj", "mlp_fc2", "norm1.linear", "mlp_context_fc1"]
    block = random.choice(["transformer_blocks.0", "single_transformer_blocks.0", "transformer_blocks.x"])
    made = {}
    for name in random.sample(names, 3):
        for end in ("lora_down", "lora_up"):
            if random.random() < 0.85:
                made[f"{block}.{name}.{end}"] = torch.zeros(random.choice(SHAPES))
    return file.with_tensors(made), True


def pickled(random: Random, file: Original) -> tuple[bytes, bool]:
    """As torch.save writes it, with what training programs and others put in."""
    name = file.pick(random)
    content: object = {
        "flat": dict(file.tensors),
        "nested": {"state_dict": dict(file.tensors)},
        "number": {**file.tensors, name: 4.0},
        "numbers": {**file.tensors, name.split(".lora_")[0] + ".alpha": random.choice([2, 2.5, float("nan"), True])},
        "text": {**file.tensors, name: "tensor"},
        "list": list(file.tensors.values()),
        "odd names": dict(enumerate(file.tensors.values())),
        "nothing": None,
        "deep": {"state_dict": {"state_dict": {"a": 1}}},
        "sparse": {**file.tensors, name: torch.eye(4).to_sparse()},
    }[random.choice(["flat", "nested", "number", "numbers", "text", "list", "odd names", "nothing", "deep", "sparse"])]
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = bytearray(buffer.getvalue())
    if random.random() < 0.3:
        data[random.randrange(len(data))] ^= 0xFF
    return bytes(data), True


REFUSED: tuple[Mutation, ...] = (
    file_mutations.truncate,
    file_mutations.append,
    file_mutations.noise,
    file_mutations.deep_header,
)
TAKEN_OR_REFUSED: tuple[Mutation, ...] = (
    file_mutations.header_length,
    file_mutations.header_bytes,
    file_mutations.data_bytes,
    file_mutations.header_entry,
    file_mutations.duplicate_key,
    drop,
    cast,
    reshape,
    cut,
    not_finite,
    rank_zero,
    stranger,
    other_kind,
    odd_names,
    converted_for_nunchaku,
    pickled,
)
ALL = REFUSED + TAKEN_OR_REFUSED

# names of files: whatever a user's disk may hold
FILE_NAMES = (
    b"plain.safetensors",
    b"with space.safetensors",
    "größe-模型-☃.safetensors".encode(),
    b"latin-\xe9\xff.safetensors",
    b"new\nline.safetensors",
    b"{brace}%s%25.safetensors",
    b"-dash.SAFETENSORS",
    b"quote'\".sft",
    b"no-ending",
    b".hidden.pt",
    b"con.safetensors",
    b"l" * 230 + b".safetensors",
)
