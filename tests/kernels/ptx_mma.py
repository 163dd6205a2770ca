"""What mma.sync computes, from the fragment tables of the PTX ISA and not from the kernels' packers.

Registers are arrays (warp, lane) of 32-bit words; lane = 4 * group + thread.
"""

import numpy as np

LANE = np.arange(32)
GROUP, THREAD = LANE // 4, LANE % 4


def _fields(words: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """(warp, lane) words -> (warp, lane, 32 // bits) integers, lowest first."""
    fields = ((words[..., None] >> (bits * np.arange(32 // bits)).astype(np.uint32)) & ((1 << bits) - 1)).astype(
        np.int64
    )
    return np.where(fields >> (bits - 1), fields - (1 << bits), fields) if signed else fields


def _float_pairs(words: np.ndarray, bfloat16: bool) -> np.ndarray:
    """(warp, lane) words -> (warp, lane, 2) floats, the low half first."""
    halves = np.stack((words & 0xFFFF, words >> 16), axis=-1).astype(np.uint32)
    if bfloat16:
        return (halves << 16).astype(np.uint32).view(np.float32).astype(np.float64)
    return halves.astype(np.uint16).view(np.float16).astype(np.float64)


def _sum_positions(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of register c0...c3 in each lane."""
    return GROUP + 8 * (index // 2), 2 * THREAD + index % 2


def multiply(opcode: list[str], a: list, b: list, c: list) -> list[np.ndarray]:
    """d = a @ b + c as registers; raises NotImplementedError for another shape or type."""
    shape, types = opcode[3], opcode[-4:]
    if shape == "m16n8k64" and types[1] in ("s4", "u4") and types[2] == "s4":
        per_word = 8
        decode_a = [_fields(word, 4, types[1] == "s4") for word in a]
        decode_b = [_fields(word, 4, True) for word in b]
    elif shape == "m16n8k16" and types in (["f32", "f16", "f16", "f32"], ["f32", "bf16", "bf16", "f32"]):
        per_word = 2
        decode_a = [_float_pairs(word, types[1] == "bf16") for word in a]
        decode_b = [_float_pairs(word, types[1] == "bf16") for word in b]
    else:
        raise NotImplementedError(".".join(opcode))
    # a0, a1: rows group and group + 8 of the first half of k; a2, a3 of the second. b0, b1: the halves of k.
    half = 4 * per_word
    warps, dtype = a[0].shape[0], decode_a[0].dtype
    left, right = np.zeros((warps, 16, 2 * half), dtype), np.zeros((warps, 2 * half, 8), dtype)
    for i in range(per_word):
        column = per_word * THREAD + i
        for register, values in enumerate(decode_a):
            left[:, GROUP + 8 * (register % 2), column + half * (register // 2)] = values[..., i]
        for register, values in enumerate(decode_b):
            right[:, column + half * register, GROUP] = values[..., i]
    product = left @ right
    sums = []
    for index, word in enumerate(c):
        row, column = _sum_positions(index)
        if per_word == 8:
            sums.append((product[:, row, column] + word.view(np.int32)).astype(np.int32).view(np.uint32))
        else:
            sums.append((product[:, row, column] + word.view(np.float32)).astype(np.float32).view(np.uint32))
    return sums
