"""Which published file suits a GPU, and how much memory a model needs, computed from the shapes of its layers."""

from fnmatch import fnmatchcase

import torch

from ..kernels.gpus import generation
from .layer import GROUP_SIZE
from .models import FAMILIES, FLUX, Architecture, BlockMap, LinearMap, Published

WORKING_GIB = 0.5  # activations of FLUX.1 at 1024 x 1024; 0.42 GiB measured with BF16 weights on an H200
RESERVED_GIB = 1.0  # the CUDA context, the desktop, the host's own reserve
SMALLEST_GIB = 4.0  # below it even single blocks do not fit beside the text encoders' remains
T5_FILE, T5_GB = "awq-int4-flux.1-t5xxl.safetensors", 3.0
FP4, INT4 = "fp4", "int4"  # as the names of published files spell the precision


def file_precision(device: torch.device) -> str:
    """What to download for a device, as file names spell it: "fp4" for native FP4 tensor cores, else "int4"."""
    return FP4 if generation(device).fp4 else INT4


def example_name(device: torch.device, model: str = "flux.1-dev", rank: int = 32) -> str:
    """Name of the published nunchaku file of a FLUX.1 model that suits the device."""
    return f"svdq-{file_precision(device)}_r{rank}-{model}.safetensors"


def weight_bytes(
    architecture: Architecture, width: int, *, counts: dict[str, int], outside: int, precision: str, rank: int
) -> int:
    """Bytes of the tensors of an SVDQuant model.

    Args:
        width: features of the residual stream. counts: blocks of each kind, by BlockMap.host.
        outside: parameters outside the blocks; they stay in 16 bits.
        precision: "int4" or "nvfp4". rank: of the 16-bit branch.
    """
    total = 2 * outside
    for _, linear in architecture.linears(counts):
        sizes = [size * width for size in linear.shape if size is not None]
        assert len(sizes) == 2, "a published model whose sizes its width decides"
        rows, columns = (int(size) for size in sizes)
        total += _linear_bytes(linear, rows, columns, precision, rank)
    return total


def published_bytes(family: Architecture, model: Published, precision: str, rank: int) -> int:
    """Bytes of the tensors of a published model's file; arguments as weight_bytes."""
    total = 2 * model.outside
    for block in family.blocks:
        for linear in block.linears:
            rows, columns = model.linear_size(block, linear)
            each = (
                2 * rows * (columns + 1)
                if _is_plain(family, block, linear, columns)
                else _linear_bytes(linear, rows, columns, precision, rank)
            )
            total += model.counts[block.host] * each
    return total


def file_bytes(family: Architecture, model: Published, precision: str, rank: int) -> int | None:
    """Bytes of the tensors of a published file, None where it is not known what it leaves out; as published_bytes."""
    if not model.layers_only:
        return published_bytes(family, model, precision, rank)
    if precision not in model.layers_only:
        return None
    total = 0
    for block in family.blocks:
        for linear in block.linears:
            size = model.linear_size(block, linear)
            if not _is_plain(family, block, linear, size[1]):
                total += model.counts[block.host] * _linear_bytes(linear, *size, precision, rank)
    return total


def family_lines(device: torch.device) -> list[str]:
    """For each family a line with its files that suit a device: names, sizes, and the second file if one is needed.

    Of models that have one size the first is named.
    """
    lines = []
    for family in FAMILIES:
        named: dict[int | None, str] = {}
        for model in family.published:
            wanted = file_precision(device)
            spelled = wanted if wanted in model.precisions else next(iter(model.precisions), "")
            if spelled:
                nbytes = file_bytes(family, model, "nvfp4" if spelled == FP4 else spelled, model.ranks[0])
                named.setdefault(nbytes, f"svdq-{spelled}_r{model.ranks[0]}-{model.name}.safetensors")
        if named:
            files = [name + ("" if nbytes is None else f" ({nbytes / 1e9:.1f} GB)") for nbytes, name in named.items()]
            second = f"; where a file has quantized layers only, also {family.base_file}" if family.base_file else ""
            lines.append(f"{family.title}: {', '.join(files)}{second}")
    return [*lines, f"text encoder T5-XXL: {T5_FILE} ({T5_GB} GB), in models/text_encoders"]


def _is_plain(family: Architecture, block: BlockMap, linear: LinearMap, columns: int) -> bool:
    """Whether files have it in 16 bits: named so, or modulation of fewer columns than a group has, as H3's curves."""
    named = any(fnmatchcase(f"{block.host}.0.{linear.host}", pattern) for pattern in family.kept)
    return named or bool(linear.modulation_chunks and columns % GROUP_SIZE["awq"])


def _linear_bytes(linear: LinearMap, rows: int, columns: int, precision: str, rank: int) -> int:
    """One Linear; of the pieces of a source the first has what they share."""
    total = 0
    for (start, stop), (left, right) in linear.rectangles(rows, columns):
        n, k = stop - start, right - left
        if linear.modulation_chunks:
            total += n * k // 2 + 2 * 2 * n * (k // GROUP_SIZE["awq"]) + 4 * n
            continue
        scale_bytes = 2 if precision == "int4" else 1
        scales = scale_bytes * n * (k // GROUP_SIZE[precision])
        shared = 0 if linear.piece else 2 * (rank + 1) * k
        total += n * k // 2 + scales + 2 * rank * n + shared + (2 * n if linear.bias else 0)
    return total


def flux_gib(precision: str, rank: int = 32) -> float:
    """GiB of the weights of FLUX.1-dev."""
    model = FLUX.published[0]
    return (
        weight_bytes(FLUX, model.width, counts=model.counts, outside=model.outside, precision=precision, rank=rank)
        / 2**30
    )


def memory_advice(device: torch.device, total_gib: float | None) -> str:
    """One sentence on how FLUX.1 fits into the device's memory; None: the size is not known."""
    precision = "nvfp4" if file_precision(device) == FP4 else INT4
    weights = flux_gib(precision)
    need = f"FLUX.1 at rank 32 is {weights:.1f} GiB of weights and about {WORKING_GIB} GiB more at 1024 x 1024"
    if device.type == "cpu" or total_gib is None:
        return f"{need} (the text encoders come on top while they run)."
    if total_gib >= weights + WORKING_GIB + RESERVED_GIB:
        return f"{need}: it fits into {total_gib:.1f} GiB as a whole."
    if total_gib >= SMALLEST_GIB:
        return f"{need}: with {total_gib:.1f} GiB ComfyUI keeps a part in main memory and moves it in while it samples."
    return f"{need}: {total_gib:.1f} GiB is very little; expect most of the time to go into moving weights."
