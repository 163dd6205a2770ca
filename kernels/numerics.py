"""Device functions that several kernels share: rounding, GELU, and the small float formats.

Every function here equals reference.py bit for bit on finite input, except gelu_tanh, whose exponential differs from
torch's in the last bits. That needs products and sums rounded one by one: launch with enable_fp_fusion=False.
"""

import triton
import triton.language as tl

# Adding 1.5 * 2^23 to a float32 of magnitude below 2^22 rounds it to an integer, ties to even, and leaves that integer
# in the low bits: one addition replaces a rounding and a conversion, and the conversion units run at a quarter of the
# rate.
ROUND_MAGIC = tl.constexpr(12582912.0)
# The int32 pattern of ROUND_MAGIC: an accumulator that starts here *is* the float ROUND_MAGIC + sum, |sum| < 2^22.
ROUND_MAGIC_BITS = tl.constexpr(0x4B400000)


@triton.jit
def round_to_bits(values):
    """float32, magnitude below 2^22 -> int32 whose low 16 bits are the rounded integer in two's complement."""
    return (values + ROUND_MAGIC).to(tl.int32, bitcast=True)


@triton.jit
def reciprocal_or_zero(scales):
    """1 / scale, correctly rounded; 0 for a scale of 0."""
    return tl.where(scales > 0, tl.math.div_rn(1.0, tl.where(scales > 0, scales, 1.0)), 0.0)


@triton.jit
def reciprocal(x, PTX: tl.constexpr):
    """1 / x within 2^-22 for normal float32; with PTX, NVIDIA's one instruction instead of a guarded division."""
    if PTX:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    return 1.0 / x


@triton.jit
def rounded(values, DTYPE: tl.constexpr, TIES: tl.constexpr):
    """float32 rounded to DTYPE, kept as float32. Without TIES no value may lie exactly between two of DTYPE."""
    if tl.bfloat16 == DTYPE:
        # Integer operations, because the conversion instruction runs at a sixteenth of their rate.
        bits = values.to(tl.int32, bitcast=True)
        if TIES:
            bits += 0x7FFF + ((bits >> 16) & 1)
        else:
            bits += 0x8000
        values = (bits & -65536).to(tl.float32, bitcast=True)
    elif tl.float32 != DTYPE:
        values = values.to(DTYPE).to(tl.float32)
    return values


@triton.jit
def gelu_tanh(x, PTX: tl.constexpr):
    """The tanh form of GELU, float32 (M, K)."""
    wide = x.to(tl.float32)
    if PTX:
        # The hardware's tanh is off by 2^-11 at most: below half a step of bfloat16 for x > -1, and below a thirtieth
        # of a step of the int8 and int4 codes elsewhere.
        inner = wide * tl.fma(wide * wide, 0.03567740813636141, 0.7978845608028654)
        tanh = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [inner], tl.float32, is_pure=True, pack=1)
        half = 0.5 * wide
        result = tl.fma(half, tanh, half)
    else:
        # 0.5 * (1 + tanh(u)) is the logistic function of 2u; constants for powers of two
        exponent = wide * tl.fma(wide * wide, -0.1029432395800235, -2.302208198144325)
        result = wide / (1.0 + tl.exp2(exponent))
    return result


@triton.jit
def pin_layout(x, PTX: tl.constexpr):
    """x, 16-bit, through an instruction that the compiler must not repeat.

    In front of a tl.dot it moves elementwise work into the layout of the operand, which several warps hold whole, and
    so makes each of them repeat that work.
    """
    if PTX:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], x.dtype, is_pure=False, pack=2)
    return x


@triton.jit
def let_next_begin():
    """The next kernel may begin, if it is launched with launch_pdl, once every program of this one has come here."""
    tl.inline_asm_elementwise("griddepcontrol.launch_dependents; // $0", "=r", [], tl.int32, is_pure=False, pack=1)


@triton.jit
def wait_for_previous():
    """Wait until the kernel before this one is done and what it wrote can be read."""
    tl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], tl.int32, is_pure=False, pack=1)


@triton.jit
def add_projection(x, proj_down, sums):
    """sums + x @ proj_down, each warp summing its own share of k.

    sums (SPLIT_K, M, R) float32, x (M, K), proj_down (K, R).
    """
    SPLIT_K: tl.constexpr = sums.shape[0]
    share: tl.constexpr = x.shape[1] // SPLIT_K
    x = x.reshape(x.shape[0], SPLIT_K, share).permute(1, 0, 2)
    return tl.dot(x, proj_down.reshape(SPLIT_K, share, proj_down.shape[1]), sums)


@triton.jit
def read_and_project(
    x_ptrs,
    proj_down_ptr,
    offs_k,
    offs_r,
    mask_m,
    R,
    x_down,
    PTX: tl.constexpr,
    GELU: tl.constexpr,
    SHIFT: tl.constexpr,
    HAS_RANK: tl.constexpr,
):
    """A tile of activations on its way to the quantizer: gelu(x) + shift, float32, and x_down with its part added.

    x_ptrs (BLOCK_M, BLOCK_K) at columns offs_k; offs_r (1, BLOCK_R); mask_m (BLOCK_M, 1).
    """
    DTYPE: tl.constexpr = x_ptrs.dtype.element_ty
    x = tl.load(x_ptrs, mask=mask_m, other=0.0)
    wide = x.to(tl.float32)
    if GELU:
        wide = rounded(gelu_tanh(wide, PTX), DTYPE, False)
        x = wide.to(DTYPE)
    if HAS_RANK:
        x = pin_layout(x, PTX)
        proj_down = tl.load(proj_down_ptr + offs_k[:, None] * R + offs_r, mask=offs_r < R, other=0.0)
        x_down = add_projection(x, proj_down.to(DTYPE), x_down)
    if SHIFT != 0.0:
        wide = rounded(wide + SHIFT, DTYPE, True)
    return wide, x_down


@triton.jit
def quotient(x, divisor, DTYPE: tl.constexpr, PTX: tl.constexpr):
    """x / divisor in float32, so exact that it rounds to DTYPE as the true quotient does.

    x (M, K) float32 with values of DTYPE, divisor (K,) of any float type.
    """
    factor = divisor.to(tl.float32)
    inverse = tl.broadcast_to(reciprocal(factor, PTX)[None, :], x.shape)
    result = x * inverse
    # A quotient of two 8-bit mantissas never lies within 2^-16 of a rounding boundary of bfloat16, so there a product
    # with an approximate reciprocal will do. Wider mantissas need one step of correction.
    # | and not or: Triton 3.3 has no `or` of plain truth values
    if (tl.bfloat16 != DTYPE) | (divisor.dtype != tl.bfloat16):
        remainder = tl.fma(-result, tl.broadcast_to(factor[None, :], x.shape), x)
        result = tl.fma(remainder, inverse, result)
    return result


@triton.jit
def rounded_quotient(x, divisor, DTYPE: tl.constexpr, PTX: tl.constexpr):
    """x / divisor rounded to DTYPE, kept as float32; arguments as quotient."""
    ties_possible: tl.constexpr = divisor.dtype != tl.bfloat16
    return rounded(quotient(x, divisor, DTYPE, PTX), DTYPE, ties_possible)


@triton.jit
def _nibble_to_float(words, INDEX: tl.constexpr, SCHEME: tl.constexpr):
    """Nibble INDEX of int32 words -> float32 code value."""
    if SCHEME == "nvfp4":
        return decode_e2m1((words >> (4 * INDEX)) & 15)
    # Masked in place, a nibble is the low bits of the float 2^23 + code * 16^INDEX; signed codes become code + 8 by
    # flipping their top bit.
    PLACE: tl.constexpr = INDEX if INDEX < 4 else INDEX - 4
    UNIT: tl.constexpr = 16**PLACE
    shifted_words = words if INDEX < 4 else words >> 16
    if SCHEME == "int4":
        bits, offset = (shifted_words & (15 * UNIT)) ^ (0x4B000000 + 8 * UNIT), 8388608.0 + 8 * UNIT
    else:
        bits, offset = (shifted_words & (15 * UNIT)) | 0x4B000000, 8388608.0
    # one instruction, and exact: the result is a small integer
    return tl.fma(bits.to(tl.float32, bitcast=True), 1.0 / UNIT, -offset / UNIT)


@triton.jit
def nibbles_to_float(words, SCHEME: tl.constexpr):
    """int32 words (A, B) -> float32 code values (A, 8 * B), the low nibble first."""
    return _interleave(
        _nibble_to_float(words, 0, SCHEME),
        _nibble_to_float(words, 1, SCHEME),
        _nibble_to_float(words, 2, SCHEME),
        _nibble_to_float(words, 3, SCHEME),
        _nibble_to_float(words, 4, SCHEME),
        _nibble_to_float(words, 5, SCHEME),
        _nibble_to_float(words, 6, SCHEME),
        _nibble_to_float(words, 7, SCHEME),
    )


@triton.jit
def _interleave(v0, v1, v2, v3, v4, v5, v6, v7):
    """Eight (A, B) -> (A, 8 * B), an element of each in turn."""
    even = tl.join(tl.join(v0, v4), tl.join(v2, v6))
    odd = tl.join(tl.join(v1, v5), tl.join(v3, v7))
    return tl.join(even, odd).reshape(v0.shape[0], 8 * v0.shape[1])


# What a sum of nibbles_in_place times in_place_factors is counted in.
IN_PLACE_UNIT = tl.constexpr(2.0**-85)


@triton.jit
def _nibble_in_place(words, INDEX: tl.constexpr, SCHEME: tl.constexpr):
    PLACE: tl.constexpr = INDEX if INDEX < 6 else INDEX - 2
    UNIT: tl.constexpr = 16**PLACE
    shifted_words = words if INDEX < 6 else words >> 8
    bits = shifted_words & (15 * UNIT)
    if SCHEME == "int4":
        bits = bits ^ (8 * UNIT)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def nibbles_in_place(words, SCHEME: tl.constexpr):
    """int32 words (A, B) -> float32 (A, 8 * B), one instruction each: codes 0...15, for int4 code + 8, each in a unit
    of its own that in_place_factors knows.

    Nothing but a nibble in its place, read as a float: below 2^24 the bits of a float32 count in steps of 2^-149, the
    denormal numbers and the first normal ones alike.
    """
    return _interleave(
        _nibble_in_place(words, 0, SCHEME),
        _nibble_in_place(words, 1, SCHEME),
        _nibble_in_place(words, 2, SCHEME),
        _nibble_in_place(words, 3, SCHEME),
        _nibble_in_place(words, 4, SCHEME),
        _nibble_in_place(words, 5, SCHEME),
        _nibble_in_place(words, 6, SCHEME),
        _nibble_in_place(words, 7, SCHEME),
    )


@triton.jit
def in_place_factors(offs_k):
    """What to multiply x of k with, so that its products with nibbles_in_place are in IN_PLACE_UNIT.

    Powers of two, 2^64 at most: exact for x below 2^63, and for products down to 2^-64 of 1.
    """
    nibble = offs_k % 8
    place = nibble - 2 * (nibble // 6)
    return ((127 + 64 - 4 * place) << 23).to(tl.float32, bitcast=True)


@triton.jit
def pack_nibbles(codes):
    """int32 codes (A, B), only the low four bits count -> int8 bytes (A, B // 2), the even column in the low nibble."""
    low, high = tl.split(codes.reshape(codes.shape[0], codes.shape[1] // 2, 2))
    return ((low & 15) | (high << 4)).to(tl.int8)


@triton.jit
def pack_words(codes):
    """int32 codes (A, B), only the low four bits count -> int32 (A, B // 8), the first column in the lowest bits."""
    low, high = tl.split(codes.reshape(codes.shape[0], codes.shape[1] // 2, 2))
    low, high = tl.split(((low & 15) | (high & 15) << 4).reshape(codes.shape[0], codes.shape[1] // 4, 2))
    low, high = tl.split((low | high << 8).reshape(codes.shape[0], codes.shape[1] // 8, 2))
    return low | high << 16


@triton.jit
def decode_e2m1(codes):
    """int32 codes 0...15 -> float32."""
    # Placed as a float32 exponent and mantissa, a code is its value times 2^-126; the subnormal 0.5 comes out right
    # too.
    bits = ((codes & 7) << 22) | ((codes & 8) << 28)
    return bits.to(tl.float32, bitcast=True) * 8.507059173023462e37


@triton.jit
def encode_e2m1(values):
    """float32 -> int32 codes 0...15, nearest, ties to the even code, saturating at 6."""
    magnitude = tl.minimum(tl.abs(values), 6.0)
    step = tl.where(magnitude < 2.0, 2.0, tl.where(magnitude < 4.0, 1.0, 0.5))
    offset = tl.where(magnitude < 2.0, 0, tl.where(magnitude < 4.0, 2, 4))
    sign = (values.to(tl.int32, bitcast=True) >> 28) & 8
    return ((round_to_bits(magnitude * step) & 7) + offset) | sign


@triton.jit
def decode_e4m3(codes):
    """uint8 e4m3 bit patterns of non-negative values -> float32; works where the GPU has no 8-bit floats."""
    return ((codes.to(tl.int32) & 0x7F) << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36


@triton.jit
def encode_e4m3(values):
    """float32 0...448 -> uint8 e4m3 bit patterns, nearest, ties to even."""
    bits = values.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    subnormal = round_to_bits(values * 512.0) & 15
    return tl.where(values < 0.015625, subnormal, normal).to(tl.uint8)
