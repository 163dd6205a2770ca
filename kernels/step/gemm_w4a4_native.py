"""Exact 4-bit GEMM on native INT4 tensor cores (sm_80, sm_86, sm_89), with the low-rank branch and the bias.

    out = sum over groups g of (qx_g @ qweight_g.T) * ascales[g] * wscales[g]  + x_down @ proj_up.T + bias

Triton has no INT4 matrix product, so the instruction comes in as inline PTX: one layout is laid out by hand so that the
compiler hands each piece of assembly exactly the registers of one instruction. One instruction spans one scale group,
k = 64. The 16-bit low-rank factors have the same register layout, since 16 values a row are 8 words, and add to the
same sums.
Operand order: fragments.py. Reference: reference.gemm_w4a4. Layouts: format.py.
"""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from ..launching.launch import launch
from ..tiles import native_int4_tile
from .fragments import are_fragments, to_activation_fragments, to_weight_fragments

# renamed in Triton 3.9
_start_copy = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared


def _mma_and_scale(activation_type: str) -> str:
    """Operands: 4 sums out; 4 words of activations; 2 of weights and 2 copies; 4 each of ascales, offsets, wscales,
    sums in.

    The integer sums start at the bits of the float 12582912, so they come out as that float plus the sum, without a
    conversion. offset = -12582912 * ascale takes it off again, exactly: 13-bit sums times 11-bit scales fit a float32.
    """
    scale = "".join(f"fma.rn.f32 d{i}, d{i}, ${12 + i}, ${16 + i};\n" for i in range(4))
    add = "".join(f"fma.rn.f32 ${i}, d{i}, ${20 + i}, ${24 + i};\n" for i in range(4))
    return (
        "{\n.reg .b32 c, d0, d1, d2, d3;\nmov.b32 c, 0x4B400000;\n"
        f"mma.sync.aligned.m16n8k64.row.col.s32.{activation_type}.s4.s32 "
        "{d0, d1, d2, d3}, {$4, $5, $6, $7}, {$8, $9}, {c, c, c, c};\n" + scale + add + "}"
    )


def _mma_low_rank(dtype: str) -> str:
    """Operands: 4 sums out, 4 words of x_down, 2 of proj_up and 2 copies, 4 sums in."""
    return (
        f"mma.sync.aligned.m16n8k16.row.col.f32.{dtype}.{dtype}.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$12, $13, $14, $15};"
    )


MMA_SIGNED, MMA_UNSIGNED = gl.constexpr(_mma_and_scale("s4")), gl.constexpr(_mma_and_scale("u4"))
MMA_FLOAT16, MMA_BFLOAT16 = gl.constexpr(_mma_low_rank("f16")), gl.constexpr(_mma_low_rank("bf16"))
# early clobber: outputs are written before the last inputs are read
SCALED_OPERANDS = gl.constexpr(",".join(["=&f"] * 4 + ["r"] * 8 + ["f"] * 16))
LOW_RANK_OPERANDS = gl.constexpr(",".join(["=&f"] * 4 + ["r"] * 8 + ["f"] * 4))
MAGIC = gl.constexpr(12582912.0)


@gluon.constexpr_function
def _bases(first, count):
    """Bases of a linear layout that counts in steps of `first`: [first], [2 * first], ...; count a power of two."""
    return [[first << bit] for bit in range(count.bit_length() - 1)]


@gluon.constexpr_function
def _broadcast(count):
    return [[0]] * (count.bit_length() - 1)


@gluon.constexpr_function
def _operand_layout(tiles, warps_before, warps, warps_after):
    """Words in fragment order, 1-d: 4 a lane, 32 lanes, tiles spread over `warps` of all warps."""
    registers = [[1], [2], *_bases(128 * warps, tiles // warps)]
    warp_bases = _broadcast(warps_before) + _bases(128, warps) + _broadcast(warps_after)
    return gl.DistributedLinearLayout(registers, _bases(4, 32), warp_bases, [], [tiles * 128])


@gluon.constexpr_function
def _row_layout(tiles, warps_m, warps_n):
    """A value for each row, 1-d, where the sums of that row are."""
    registers = [[8], *_bases(16 * warps_m, tiles // warps_m)]
    lanes = [[0], [0], [1], [2], [4]]
    return gl.DistributedLinearLayout(registers, lanes, _broadcast(warps_n) + _bases(16, warps_m), [], [tiles * 16])


@gluon.constexpr_function
def _column_layout(pairs, warps_m, warps_n):
    """A value for each column, 1-d, where the sums of that column are."""
    registers = [[1], [8], *_bases(16 * warps_n, pairs // warps_n)]
    lanes = [[2], [4], [0], [0], [0]]
    return gl.DistributedLinearLayout(registers, lanes, _bases(16, warps_n) + _broadcast(warps_m), [], [pairs * 16])


@gluon.jit
def _copy_stage(
    qx_ptr, qweight_ptr, ascales_ptr, wscales_ptr, qx_stages, qweight_stages, ascales_stages, wscales_stages,
    slot, group, GROUPS, start_m, start_n, M_PADDED, N,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, STAGE_GROUPS: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Start the copies of STAGE_GROUPS scale groups into a slot; beyond the last group only the bookkeeping."""
    FOUR: gl.constexpr = gl.BlockedLayout([4], [32], [WARPS], [0])
    EIGHT: gl.constexpr = gl.BlockedLayout([8], [32], [WARPS], [0])
    word_m, word_n = gl.arange(0, STAGE_GROUPS * BLOCK_M * 8, FOUR), gl.arange(0, STAGE_GROUPS * BLOCK_N * 8, FOUR)
    row, column = gl.arange(0, STAGE_GROUPS * BLOCK_M, EIGHT), gl.arange(0, STAGE_GROUPS * BLOCK_N, EIGHT)
    inside = group < GROUPS
    qx_ptrs = qx_ptr + (group * (M_PADDED * 8) + start_m * 8)
    qx_ptrs += (word_m // (BLOCK_M * 8)) * (M_PADDED * 8) + word_m % (BLOCK_M * 8)
    qweight_ptrs = qweight_ptr + (group * (N * 8) + start_n * 8)
    qweight_ptrs += (word_n // (BLOCK_N * 8)) * (N * 8) + word_n % (BLOCK_N * 8)
    ascales_ptrs = ascales_ptr + (group * M_PADDED + start_m) + (row // BLOCK_M) * M_PADDED + row % BLOCK_M
    wscales_ptrs = wscales_ptr + (group * N + start_n) + (column // BLOCK_N) * N + column % BLOCK_N
    _start_copy(qx_stages.index(slot), qx_ptrs, mask=inside)
    _start_copy(qweight_stages.index(slot), qweight_ptrs, mask=inside)
    _start_copy(ascales_stages.index(slot), ascales_ptrs, mask=inside)
    _start_copy(wscales_stages.index(slot), wscales_ptrs, mask=inside)
    async_copy.commit_group()


@gluon.jit(do_not_specialize=["M", "GROUPS"])
def _gemm_w4a4_native_kernel(
    qx_ptr,  # (K // 64, M_PADDED // 16, 32, 4) int32
    qweight_ptr,  # (K // 64, N // 16, 32, 4) int32
    ascales_ptr,  # (K // 64, M_PADDED) 16-bit float
    wscales_ptr,  # (K // 64, N) 16-bit float
    x_down_ptr,  # (M, R // 2) int32: pairs of 16-bit floats
    proj_up_ptr,  # (N, R // 2) int32
    bias_ptr,  # (N,) or None
    out_ptr,  # (M, N)
    M, M_PADDED, N, GROUPS, R,
    UNSIGNED: gl.constexpr, BFLOAT16: gl.constexpr, HAS_BIAS: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, WARPS_M: gl.constexpr, WARPS_N: gl.constexpr,
    STAGES: gl.constexpr, STAGE_GROUPS: gl.constexpr, SWIZZLE_M: gl.constexpr,
):  # fmt: skip
    TILES_M: gl.constexpr = BLOCK_M // 16
    PAIRS_N: gl.constexpr = BLOCK_N // 16
    WARPS: gl.constexpr = WARPS_M * WARPS_N
    # m tile, pair of n tiles, n tile of the pair, g, t, high register bit, low register bit: the last two are the
    # fastest registers, so four in a row are the sums (or the activations) of one instruction.
    SUMS: gl.constexpr = gl.BlockedLayout(
        [1, 1, 2, 1, 1, 2, 2], [1, 1, 1, 8, 4, 1, 1], [WARPS_M, WARPS_N, 1, 1, 1, 1, 1], [6, 5, 2, 4, 3, 1, 0]
    )
    QX: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, SUMS))
    QWEIGHT: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(5, SUMS))
    ROW: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(4, gl.SliceLayout(6, SUMS))))
    COLUMN: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(3, gl.SliceLayout(5, SUMS)))
    QX_WORDS: gl.constexpr = _operand_layout(TILES_M, WARPS_N, WARPS_M, 1)
    QWEIGHT_WORDS: gl.constexpr = _operand_layout(PAIRS_N, 1, WARPS_N, WARPS_M)
    ROWS: gl.constexpr = _row_layout(TILES_M, WARPS_M, WARPS_N)
    COLUMNS: gl.constexpr = _column_layout(PAIRS_N, WARPS_M, WARPS_N)

    tiles_m, tiles_n = M_PADDED // BLOCK_M, N // BLOCK_N
    first_m = (gl.program_id(0) // (SWIZZLE_M * tiles_n)) * SWIZZLE_M
    height = gl.minimum(tiles_m - first_m, SWIZZLE_M)
    within = gl.program_id(0) % (SWIZZLE_M * tiles_n)
    start_m, start_n = (first_m + within % height) * BLOCK_M, (within // height) * BLOCK_N

    FLAT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    qx_stages = gl.allocate_shared_memory(gl.int32, [STAGES, STAGE_GROUPS * BLOCK_M * 8], FLAT)
    qweight_stages = gl.allocate_shared_memory(gl.int32, [STAGES, STAGE_GROUPS * BLOCK_N * 8], FLAT)
    ascales_stages = gl.allocate_shared_memory(ascales_ptr.dtype.element_ty, [STAGES, STAGE_GROUPS * BLOCK_M], FLAT)
    wscales_stages = gl.allocate_shared_memory(wscales_ptr.dtype.element_ty, [STAGES, STAGE_GROUPS * BLOCK_N], FLAT)
    for stage in gl.static_range(STAGES - 1):
        _copy_stage(
            qx_ptr, qweight_ptr, ascales_ptr, wscales_ptr, qx_stages, qweight_stages, ascales_stages, wscales_stages,
            stage, stage * STAGE_GROUPS, GROUPS, start_m, start_n, M_PADDED, N, BLOCK_M, BLOCK_N, STAGE_GROUPS, WARPS,
        )  # fmt: skip

    sums = gl.zeros([TILES_M, PAIRS_N, 2, 8, 4, 2, 2], gl.float32, SUMS)
    word_m, word_n = gl.arange(0, BLOCK_M * 8, QX_WORDS), gl.arange(0, BLOCK_N * 8, QWEIGHT_WORDS)
    row = start_m + (word_m // 128) * 16 + (word_m // 16) % 8 + 8 * (word_m % 2)
    column = start_n + (word_n // 128) * 16 + (word_n // 16) % 8 + 8 * ((word_n // 2) % 2)
    x_down_ptrs = x_down_ptr + row * (R // 2) + (word_m // 4) % 4 + 4 * ((word_m // 2) % 2)
    proj_up_ptrs = proj_up_ptr + column * (R // 2) + (word_n // 4) % 4 + 4 * (word_n % 2)
    for step in range(R // 16):
        x_down = gl.load(x_down_ptrs + step * 8, mask=row < M, other=0).reshape([TILES_M, 8, 4, 2, 2])
        proj_up = gl.load(proj_up_ptrs + step * 8).reshape([PAIRS_N, 8, 4, 2, 2]).permute([0, 3, 1, 2, 4])
        x_down = gl.convert_layout(x_down, QX, assert_trivial=True).expand_dims(1).expand_dims(2)
        proj_up = gl.convert_layout(proj_up, QWEIGHT, assert_trivial=True).expand_dims(0).expand_dims(5)
        sums = gl.inline_asm_elementwise(
            MMA_BFLOAT16 if BFLOAT16 else MMA_FLOAT16, LOW_RANK_OPERANDS, [x_down, proj_up, sums], gl.float32, True, 4
        )

    read, write = 0, STAGES - 1
    for group in range(0, GROUPS, STAGE_GROUPS):
        async_copy.wait_group(STAGES - 2)
        _copy_stage(
            qx_ptr, qweight_ptr, ascales_ptr, wscales_ptr, qx_stages, qweight_stages, ascales_stages, wscales_stages,
            write, group + (STAGES - 1) * STAGE_GROUPS, GROUPS, start_m, start_n, M_PADDED, N,
            BLOCK_M, BLOCK_N, STAGE_GROUPS, WARPS,
        )  # fmt: skip
        for i in gl.static_range(STAGE_GROUPS):
            qx = qx_stages.index(read).slice(i * BLOCK_M * 8, BLOCK_M * 8).load(QX_WORDS)
            qx = gl.convert_layout(qx.reshape([TILES_M, 8, 4, 2, 2]), QX, assert_trivial=True)
            qweight = qweight_stages.index(read).slice(i * BLOCK_N * 8, BLOCK_N * 8).load(QWEIGHT_WORDS)
            qweight = qweight.reshape([PAIRS_N, 8, 4, 2, 2]).permute([0, 3, 1, 2, 4])
            qweight = gl.convert_layout(qweight, QWEIGHT, assert_trivial=True)
            ascales = ascales_stages.index(read).slice(i * BLOCK_M, BLOCK_M).load(ROWS)
            ascales = ascales.reshape([TILES_M, 2, 8]).permute([0, 2, 1])
            ascales = gl.convert_layout(ascales, ROW, assert_trivial=True).to(gl.float32)
            ascales = ascales.expand_dims(1).expand_dims(2).expand_dims(4).expand_dims(6)
            wscales = wscales_stages.index(read).slice(i * BLOCK_N, BLOCK_N).load(COLUMNS)
            wscales = gl.convert_layout(wscales.reshape([PAIRS_N, 2, 4, 2]), COLUMN, assert_trivial=True)
            wscales = wscales.to(gl.float32).expand_dims(0).expand_dims(3).expand_dims(5)
            sums = gl.inline_asm_elementwise(
                MMA_UNSIGNED if UNSIGNED else MMA_SIGNED,
                SCALED_OPERANDS,
                [
                    qx.expand_dims(1).expand_dims(2),
                    qweight.expand_dims(0).expand_dims(5),
                    ascales,
                    ascales * -MAGIC,
                    wscales,
                    sums,
                ],
                gl.float32,
                True,
                4,
            )
        read = gl.where(read == STAGES - 1, 0, read + 1)
        write = gl.where(write == STAGES - 1, 0, write + 1)
    async_copy.wait_group(0)

    if HAS_BIAS:
        bias = gl.load(bias_ptr + start_n + gl.arange(0, BLOCK_N, COLUMNS)).reshape([PAIRS_N, 2, 4, 2])
        bias = gl.convert_layout(bias, COLUMN, assert_trivial=True).to(gl.float32)
        sums += bias.expand_dims(0).expand_dims(3).expand_dims(5)
    STORE: gl.constexpr = gl.BlockedLayout([1, 8], [32 // (BLOCK_N // 8), BLOCK_N // 8], [WARPS, 1], [1, 0])
    out = sums.permute([0, 5, 3, 1, 2, 4, 6]).reshape([BLOCK_M, BLOCK_N]).to(out_ptr.dtype.element_ty)
    out = gl.convert_layout(out, STORE)
    offs_m = start_m + gl.arange(0, BLOCK_M, gl.SliceLayout(1, STORE))
    offs_n = start_n + gl.arange(0, BLOCK_N, gl.SliceLayout(0, STORE))
    gl.store(out_ptr + offs_m.to(gl.int64)[:, None] * N + offs_n[None, :], out, mask=(offs_m < M)[:, None])


def gemm_w4a4_native(
    qx: Tensor,
    ascales: Tensor,
    qweight: Tensor,
    wscales: Tensor,
    *,
    x_down: Tensor,
    proj_up: Tensor,
    bias: Tensor | None = None,
    act_unsigned: bool = False,
    tile: dict[str, int] | None = None,
) -> Tensor:
    """Exact 4-bit GEMM, low-rank up projection and bias in one kernel.

    Args:
        qx: (K//64, M_PADDED//16, 32, 4) int32, ascales: (K//64, M_PADDED), x_down: (M, R) bfloat16 or float16: from
            quantize_act with output "fragments" and pad_rows = 128; or qx (M_PADDED, K//2) int8, of "packed".
        qweight: (N, K//2) int8, or what to_weight_fragments makes of it. wscales: (K//64, N) bfloat16 or float16, N a
            multiple of 64.
        proj_up: (N, R), R = 0 for no branch. bias: (N,) or None.
        act_unsigned: qx holds codes 0...15.
        tile: of tiles.native_int4_tile, to measure others.

    Returns:
        (M, N) of x_down.dtype.
    """
    (M, R), (groups, N), rows = x_down.shape, wscales.shape, ascales.shape[1]
    tile = tile or native_int4_tile(M, N, groups)
    if rows % tile["BLOCK_M"] or N % tile["BLOCK_N"]:
        raise ValueError(
            f"gemm_w4a4_native: {rows} x {N} is not a whole number of {tile['BLOCK_M']} x {tile['BLOCK_N']}."
        )
    out = torch.empty((M, N), dtype=x_down.dtype, device=qx.device)
    proj_up = proj_up.to(x_down.dtype)
    activations = qx if are_fragments(qx) else to_activation_fragments(qx)
    weights = qweight if are_fragments(qweight) else to_weight_fragments(qweight)
    # With R = 0 the kernel never reads the factors, but the pointers must be to words all the same.
    factors = (x_down.view(torch.int32), proj_up.view(torch.int32)) if R else (weights, weights)
    launch(
        _gemm_w4a4_native_kernel,
        (rows // tile["BLOCK_M"] * (N // tile["BLOCK_N"]),),
        (
            activations,
            weights,
            ascales,
            wscales,
            *factors,
            bias,
            out,
            M,
            rows,
            N,
            groups,
            R,
        ),
        {
            "UNSIGNED": act_unsigned,
            "BFLOAT16": x_down.dtype == torch.bfloat16,
            "HAS_BIAS": bias is not None,
            "num_warps": tile["WARPS_M"] * tile["WARPS_N"],
            **tile,
        },
    )
    return out
