"""Device functions that several kernels share: rounding, GELU, and the small float formats.

Every function here equals reference.py bit for bit on finite input, except gelu_tanh, whose exponential differs from
torch's in the last bits.
"""

import triton
import triton.language as tl

# Adding 1.5 * 2^23 to a float32 of magnitude below 2^22 rounds it to an integer, ties to even, and leaves that integer in
# the low bits: one addition replaces a rounding and a conversion, and the conversion units run at a quarter of the rate.
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
def gelu_tanh(x):
    """The tanh form of GELU, float32; 0.5 * (1 + tanh(u)) is the logistic function of 2u."""
    u2 = 1.5957691216057308 * (x + 0.044715 * x * x * x)
    return x / (1.0 + tl.exp(-u2))


@triton.jit
def smooth(x, smooth_factor, SHIFT: tl.constexpr):
    """(x + SHIFT) / smooth_factor, rounded to the dtype of x after each step; x (M, K), smooth_factor (K,)."""
    if SHIFT != 0.0:
        x = (x.to(tl.float32) + SHIFT).to(x.dtype)
    factor = smooth_factor.to(tl.float32)
    if x.dtype == tl.bfloat16 and smooth_factor.dtype == tl.bfloat16:
        # A quotient of two 8-bit mantissas never lies within 2^-16 of a rounding boundary of bfloat16, so multiplying by
        # the rounded reciprocal gives the same bfloat16 as dividing.
        quotient = x.to(tl.float32) * tl.math.div_rn(1.0, factor)[None, :]
    else:
        quotient = tl.math.div_rn(x.to(tl.float32), tl.broadcast_to(factor[None, :], x.shape))
    return quotient.to(x.dtype)


@triton.jit
def unpack_nibbles(packed, SIGNED: tl.constexpr):
    """int8 bytes (A, B) -> int32 codes (A, 2 * B), the low nibble first."""
    wide = packed.to(tl.int32)
    if SIGNED:
        low, high = (wide << 28) >> 28, wide >> 4
    else:
        low, high = wide & 15, (wide >> 4) & 15
    return tl.join(low, high).reshape(packed.shape[0], 2 * packed.shape[1])


@triton.jit
def pack_nibbles(codes):
    """int32 codes (A, B), only the low four bits count -> int8 bytes (A, B // 2), the even column in the low nibble."""
    low, high = tl.split(codes.reshape(codes.shape[0], codes.shape[1] // 2, 2))
    return ((low & 15) | (high << 4)).to(tl.int8)


@triton.jit
def decode_e2m1(codes):
    """int32 codes 0...15 -> float32."""
    # Placed as a float32 exponent and mantissa, a code is its value times 2^-126; the subnormal 0.5 comes out right too.
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
