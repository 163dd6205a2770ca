"""Ways to damage the tensors of a safetensors file, in the manner of file_mutations.py, and all of both."""

from random import Random

import file_mutations
import torch
from file_mutations import Mutation, Original
from torch import Tensor

# ends of names that a file may lack: what is informational, or 1 by default, or of a layer that is summed with another
OPTIONAL = ("smooth_orig", "smooth_factor_orig", "wtscale", "wcscales", "single_transformer_blocks.0.out_proj.bias")
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
SMOOTHING = (".smooth", ".smooth_factor", ".weight_smooth_factor")
DOWN = (".lora_down", ".proj_down", ".weight_proj_down")


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
    *file_mutations.OF_ANY_FILE,
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
