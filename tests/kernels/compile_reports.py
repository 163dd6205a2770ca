"""What is in a compiled kernel: matrix instructions, spilled registers, tiles that two kinds of readers share."""

import re
import struct
import subprocess
import tempfile
from pathlib import Path

import triton

NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INFO, _SIZED, _FRAME_SIZE = b".nv.info", 4, 0x11  # a section of a cubin, and in it a form and a kind of attribute


def frame_size(cubin: bytes) -> int:
    """Bytes of local memory of a thread, which is where spilled registers go; the largest of all functions."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    entry, number, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + entry * index) for index in range(number)]
    sizes = []
    for name, _, _, _, start, length in sections:
        place = sections[names][4] + name
        if cubin[place : cubin.index(b"\0", place)] != _INFO:
            continue
        at = start
        while at < start + length:
            form, kind, size = struct.unpack_from("<BBH", cubin, at)
            if (form, kind) == (_SIZED, _FRAME_SIZE):
                sizes.append(struct.unpack_from("<II", cubin, at + 4)[1])
            at += 4 + (size if form == _SIZED else 0)
    if not sizes:
        raise ValueError("the cubin says nothing of its frame: its form has changed, see frame_size")
    return max(sizes)


def _machine_code(cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        disassemble = [NVIDIA_TOOLS / "nvdisasm", "-c", path]
        return subprocess.run(disassemble, capture_output=True, text=True, check=True).stdout


def nvidia_report(compiled) -> dict:
    """Matrix instructions in PTX, loads and stores of spilled registers, and 4-bit products in machine code.

    Half a second for the machine code is spent only where it tells more: some GPUs have no 4-bit products and the
    assembler writes others in their place, and a frame may hold more than spilled registers.
    """
    four_bits = re.search(r"\bmma\.sync\S+\.[us]4\.", compiled.asm["ptx"])
    needed = four_bits or frame_size(compiled.asm["cubin"])
    machine_code = _machine_code(compiled.asm["cubin"]) if needed else ""
    return {
        "instructions": sorted(
            set(re.findall(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\S+|setmaxnreg", compiled.asm["ptx"]))
            | set(re.findall(r"\b[A-Z]{0,2}MMA\.[A-Z0-9.]+", machine_code))
        ),
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", machine_code)),
        "shared_tiles": _shared_tiles(compiled.asm["ttgir"]),
        # none of them asynchronous: a copy into shared memory takes four bytes or more
        "byte_loads": len(re.findall(r"\bld\.global\S*\.b8\b", compiled.asm["ptx"])),
    }


def _shared_tiles(ttgir: str) -> list[str]:
    """Tiles of one buffer that both an asynchronous product and other instructions read."""
    products = re.findall(r"warp_group_dot (%\w+), (%\w+),", ttgir)
    return sorted({name for pair in products for name in pair} & set(re.findall(r"local_load (%\w+)", ttgir)))


def amd_report(compiled) -> dict:
    assembly = compiled.asm["amdgcn"]
    spills = sum(int(count) for count in re.findall(r"\.vgpr_spill_count:\s*(\d+)", assembly))
    return {"instructions": sorted(set(re.findall(r"\bv_(?:mfma|wmma)\w+", assembly))), "spills": spills}
