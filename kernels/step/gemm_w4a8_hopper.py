"""Int8 GEMM with the low-rank branch, the bias, a sum of two layers and a GELU, for Hopper's asynchronous tensor cores.

    out = gelu((qx @ qweight_int8.T) * ascales * channel_scales + x_down @ proj_up.T + bias [+ out])

One block a processor walks over tiles of 128 x 256, each two parts of 128 columns. Where the last round of tiles would
leave at least half of the processors idle, each takes a single part instead. One warp does nothing but start bulk
copies into a ring of buffers; two groups of four warps compute the upper and the lower half of the rows. While one
group finishes a tile, the other still multiplies, and the copies for the next tile are under way. The low-rank factors
travel through the same ring, as one more step of k. Reference: reference.gemm_w4a8. Layouts: format.py.
"""

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ..epilogue import NOTHING_MORE, Epilogue, destination
from ..gpus import processors
from ..launching.launch import launch
from ..layer_call import Int8Weight, QuantizedAct
from ..tiles import HOPPER_PART_N, part_position, part_rounds
from .hopper_parts import Descriptor, fetch, finish_part, load

# a name that Triton 3.9 changed
_reinterpret = getattr(gl.shared_memory_descriptor, "reinterpret", None) or gl.shared_memory_descriptor._reinterpret

BLOCK_M, BLOCK_N, BLOCK_K = 128, 2 * HOPPER_PART_N, 128
HALF_M = gl.constexpr(BLOCK_M // 2)
BLOCK_R = 64  # 64 16-bit values are as long as 128 bytes of int8: one ring serves both
BLOCKS = {"BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K, "BLOCK_R": BLOCK_R}
PART_N = gl.constexpr(HOPPER_PART_N)
STAGES = gl.constexpr(4)

_part_rounds, _part_position = gluon.jit(part_rounds), gluon.jit(part_position)


@gluon.jit
def _origin(
    item, whole, PARTS: gl.constexpr, M, N, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, SWIZZLE_M: gl.constexpr
):
    tile_m, part_n = _part_position(item, whole, PARTS, gl.cdiv(M, BLOCK_M), gl.cdiv(N, BLOCK_N), SWIZZLE_M)
    return tile_m * BLOCK_M, part_n * PART_N


@gluon.jit
def _copy_step(a_desc, b_desc, origin, start, a_ring, b_boxes, full, empty, step, PARTS: gl.constexpr):
    """Wait until slot step % STAGES is free, then start the copies into it."""
    start_m, start_n = origin
    slot, round_parity = step % STAGES, (step // STAGES) & 1
    mbarrier.wait(empty.index(slot), round_parity ^ 1)
    SLOT_BOXES: gl.constexpr = b_boxes.shape[0] // STAGES
    BOXES: gl.constexpr = PARTS * SLOT_BOXES // 2
    mbarrier.expect(full.index(slot), a_desc.block_type.nbytes + BOXES * b_desc.block_type.nbytes)
    load(a_desc, [start_m, start], full.index(slot), a_ring.index(slot))
    for box in gl.static_range(BOXES):
        load(b_desc, [start_n + box * PART_N, start], full.index(slot), b_boxes.index(slot * SLOT_BOXES + box))
    return step + 1


@gluon.jit
def _copy_tiles(
    qx_desc, qweight_desc, x_down_desc, proj_up_desc, a_ring, b_boxes, x_down_ring, proj_up_boxes, full, empty,
    M, N, K, R, PROGRAMS, CUT: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr,
    BLOCK_R: gl.constexpr, SWIZZLE_M: gl.constexpr,
):  # fmt: skip
    whole, single = _part_rounds(gl.cdiv(M, BLOCK_M) * gl.cdiv(N, BLOCK_N), PROGRAMS)
    step = 0
    for PARTS in gl.static_range(2, 0 if CUT else 1, -1):
        for item in range(gl.program_id(0), whole if PARTS == 2 else single, PROGRAMS):
            origin = _origin(item, whole, PARTS, M, N, BLOCK_M, BLOCK_N, SWIZZLE_M)
            for start in range(0, K, BLOCK_K):
                step = _copy_step(qx_desc, qweight_desc, origin, start, a_ring, b_boxes, full, empty, step, PARTS)
            for start in range(0, R, BLOCK_R):
                step = _copy_step(
                    x_down_desc, proj_up_desc, origin, start, x_down_ring, proj_up_boxes, full, empty, step, PARTS
                )


@gluon.jit
def _multiply_tiles(
    a_ring, b_ring, x_down_ring, proj_up_ring, full, empty, staging, fetched, out_desc, ascales_ptr, channel_scales_ptr,
    bias_ptr, M, N, K, R, PROGRAMS, gelu_from, HALF: gl.constexpr, HAS_BIAS: gl.constexpr, ACCUMULATE: gl.constexpr,
    GELU: gl.constexpr, RANK_STEP: gl.constexpr, CUT: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr, BLOCK_R: gl.constexpr, SWIZZLE_M: gl.constexpr,
):  # fmt: skip
    # 128 columns an instruction: Triton does not know the int8 one of 256.
    INT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 32])
    FLOAT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
    whole, single = _part_rounds(gl.cdiv(M, BLOCK_M) * gl.cdiv(N, BLOCK_N), PROGRAMS)
    step = 0
    for PARTS in gl.static_range(2, 0 if CUT else 1, -1):
        for item in range(gl.program_id(0), whole if PARTS == 2 else single, PROGRAMS):
            start_m, start_n = _origin(item, whole, PARTS, M, N, BLOCK_M, BLOCK_N, SWIZZLE_M)
            start_m += HALF * HALF_M
            # Under way while the products are computed; what belongs to columns a few values to a thread, because there
            # are no more registers.
            offs_m = start_m + gl.arange(0, HALF_M, gl.SliceLayout(1, FLOAT))
            ascales = gl.load(ascales_ptr + offs_m, mask=offs_m < M, other=0.0)
            offs_n = start_n + gl.arange(0, PARTS * PART_N, gl.BlockedLayout([PARTS], [32], [4], [0]))
            channel_scales = gl.load(channel_scales_ptr + offs_n, mask=offs_n < N, other=0.0)
            if HAS_BIAS:
                bias = gl.load(bias_ptr + offs_n, mask=offs_n < N, other=0.0)

            sums = gl.zeros([HALF_M, PARTS * PART_N], gl.int32, INT)
            for start in range(0, K, BLOCK_K):
                slot = step % STAGES
                mbarrier.wait(full.index(slot), (step // STAGES) & 1)
                a = a_ring.index(slot).slice(HALF * HALF_M, HALF_M)
                b = b_ring.index(slot).slice(0, PARTS * PART_N).permute((1, 0))
                sums = warpgroup_mma(a, b, sums, use_acc=start > 0, is_async=True)
                # One product stays in flight; the one before it is done, so its slot is free.
                sums = warpgroup_mma_wait(1, deps=(sums,))
                mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES), pred=start > 0)
                step += 1
            if ACCUMULATE:
                fetch(out_desc, start_m, start_n, staging, fetched)
            sums = warpgroup_mma_wait(0, deps=(sums,))
            mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES))

            channel_scales = gl.convert_layout(channel_scales, gl.SliceLayout(0, FLOAT))
            out = gl.convert_layout(sums, FLOAT).to(gl.float32) * ascales[:, None] * channel_scales[None, :]
            for _ in range(0, R, BLOCK_R):
                slot = step % STAGES
                mbarrier.wait(full.index(slot), (step // STAGES) & 1)
                x_down = x_down_ring.index(slot).slice(HALF * HALF_M, HALF_M).slice(0, RANK_STEP, dim=1)
                proj_up = proj_up_ring.index(slot).slice(0, PARTS * PART_N).slice(0, RANK_STEP, dim=1).permute((1, 0))
                out = warpgroup_mma(x_down, proj_up, out, is_async=True)
                out = warpgroup_mma_wait(0, deps=(out,))
                mbarrier.arrive(empty.index(slot))
                step += 1
            if HAS_BIAS:
                out += gl.convert_layout(bias, gl.SliceLayout(0, FLOAT)).to(gl.float32)[None, :]

            # Two fetches for each whole tile: the phases of the barrier are odd for a right part and even for others.
            if PARTS == 2:
                left, right = out.reshape([HALF_M, 2, PART_N]).permute((0, 2, 1)).split()
                left, right = gl.convert_layout(left, FLOAT), gl.convert_layout(right, FLOAT)
                finish_part(left, start_m, start_n, staging, fetched, 0, gelu_from, out_desc, ACCUMULATE, GELU)
                if ACCUMULATE:
                    fetch(out_desc, start_m, start_n + PART_N, staging, fetched)
                finish_part(
                    right, start_m, start_n + PART_N, staging, fetched, 1, gelu_from, out_desc, ACCUMULATE, GELU
                )
            else:
                finish_part(out, start_m, start_n, staging, fetched, 0, gelu_from, out_desc, ACCUMULATE, GELU)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["M", "PROGRAMS"])
def _gemm_w4a8_hopper_kernel(
    qx_desc,  # (M, K) int8, blocks (BLOCK_M, BLOCK_K)
    qweight_desc,  # (N, K) int8, blocks (PART_N if CUT else BLOCK_N, BLOCK_K)
    x_down_desc,  # (M, R), blocks (BLOCK_M, BLOCK_R)
    proj_up_desc,  # (N, R), blocks (PART_N if CUT else BLOCK_N, BLOCK_R)
    out_desc,  # (M, N), blocks (HALF_M, PART_N)
    ascales_ptr,  # (M,) float32
    channel_scales_ptr,  # (N,) float32
    bias_ptr,  # (N,) or None
    M, N, K, R, PROGRAMS,
    gelu_from,
    HAS_BIAS: gl.constexpr, ACCUMULATE: gl.constexpr, GELU: gl.constexpr, RANK_STEP: gl.constexpr, CUT: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr, BLOCK_R: gl.constexpr, SWIZZLE_M: gl.constexpr,
):  # fmt: skip
    a_ring = gl.allocate_shared_memory(gl.int8, [STAGES, BLOCK_M, BLOCK_K], qx_desc.layout)
    b_ring = gl.allocate_shared_memory(gl.int8, [STAGES, BLOCK_N, BLOCK_K], qweight_desc.layout)
    x_down_ring = _reinterpret(a_ring, out_desc.dtype, [STAGES, BLOCK_M, BLOCK_R], x_down_desc.layout)
    proj_up_ring = _reinterpret(b_ring, out_desc.dtype, [STAGES, BLOCK_N, BLOCK_R], proj_up_desc.layout)
    # A slot's rows of 128 bytes lie one behind the other, so where tiles are cut, it is filled by the part.
    SLOT_BOXES: gl.constexpr = 2 if CUT else 1
    BOX_N: gl.constexpr = BLOCK_N // SLOT_BOXES
    b_boxes = _reinterpret(b_ring, gl.int8, [SLOT_BOXES * STAGES, BOX_N, BLOCK_K], qweight_desc.layout)
    proj_up_boxes = _reinterpret(b_ring, out_desc.dtype, [SLOT_BOXES * STAGES, BOX_N, BLOCK_R], proj_up_desc.layout)
    staging = gl.allocate_shared_memory(out_desc.dtype, [2, HALF_M, PART_N], out_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=2)
    fetched = empty  # not used without ACCUMULATE
    if ACCUMULATE:
        fetched = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
        for half in gl.static_range(2):
            mbarrier.init(fetched.index(half), count=1)
    fence_async_shared()

    gl.warp_specialize(
        [
            (_multiply_tiles, (
                a_ring, b_ring, x_down_ring, proj_up_ring, full, empty, staging.index(0), fetched.index(0), out_desc,
                ascales_ptr, channel_scales_ptr, bias_ptr, M, N, K, R, PROGRAMS, gelu_from, 0, HAS_BIAS, ACCUMULATE,
                GELU, RANK_STEP, CUT, BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_R, SWIZZLE_M,
            )),
            (_multiply_tiles, (
                a_ring, b_ring, x_down_ring, proj_up_ring, full, empty, staging.index(1), fetched.index(1), out_desc,
                ascales_ptr, channel_scales_ptr, bias_ptr, M, N, K, R, PROGRAMS, gelu_from, 1, HAS_BIAS, ACCUMULATE,
                GELU, RANK_STEP, CUT, BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_R, SWIZZLE_M,
            )),
            (_copy_tiles, (
                qx_desc, qweight_desc, x_down_desc, proj_up_desc, a_ring, b_boxes, x_down_ring, proj_up_boxes,
                full, empty, M, N, K, R, PROGRAMS, CUT, BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_R, SWIZZLE_M,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip


def gemm_w4a8_hopper(
    quantized: QuantizedAct,
    weight: Int8Weight,
    proj_up: Tensor,
    bias: Tensor | None = None,
    epilogue: Epilogue = NOTHING_MORE,
    *,
    swizzle_m: int = 4,
) -> Tensor:
    """Arguments and result as gemm_w4a8.gemm_w4a8; K a multiple of 16, N and R of 8,
    because the copy engine wants rows of whole 16 bytes; so do those of out. gelu_from one of HOPPER_PART_N."""
    (qx, ascales, x_down), (qweight_int8, channel_scales) = quantized, weight
    (M, K), N, R = qx.shape, qweight_int8.shape[0], x_down.shape[1]
    out = destination(epilogue, M, N, x_down)
    proj_up = proj_up.to(x_down.dtype)
    tiles = -(-M // BLOCK_M) * -(-N // BLOCK_N)
    programs = min(processors(qx.device), 2 * tiles)  # few tiles are all computed as two parts
    cut = part_rounds(tiles, programs)[1] > 0  # a kernel of its own: it copies 128 rows of the weight at a time
    box_n = HOPPER_PART_N if cut else BLOCK_N
    if not R:  # a descriptor cannot be empty; with R = 0 the kernel never reads these
        x_down, proj_up = out, out
    sizes = M, N, K, R, programs, epilogue.gelu_from or 0
    launch(
        _gemm_w4a8_hopper_kernel,
        (programs,),
        (
            Descriptor(qx, BLOCK_M, BLOCK_K),
            Descriptor(qweight_int8, box_n, BLOCK_K),
            Descriptor(x_down, BLOCK_M, BLOCK_R),
            Descriptor(proj_up, box_n, BLOCK_R),
            Descriptor(out, BLOCK_M // 2, HOPPER_PART_N),
            ascales,
            channel_scales,
            bias,
            *sizes,
        ),
        {
            "HAS_BIAS": bias is not None,
            "ACCUMULATE": epilogue.accumulate,
            "GELU": epilogue.gelu_from is not None,
            "RANK_STEP": 32 if R <= 32 else 64,
            "CUT": cut,
            **BLOCKS,
            "SWIZZLE_M": swizzle_m,
            "num_warps": 4,
        },
    )
    return out
