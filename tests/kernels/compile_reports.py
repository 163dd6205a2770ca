"""What is in a compiled kernel: matrix instructions, spilled registers, tiles that two kinds of readers share."""

import re
import subprocess
import tempfile
from pathlib import Path

import triton


def nvidia_report(compiled) -> dict:
    """Matrix instructions in PTX and machine code, and loads and stores of spilled registers."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        machine_code = subprocess.run(
            [tools / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True
        ).stdout
    return {
        "instructions": sorted(
            set(re.findall(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\S+|setmaxnreg", compiled.asm["ptx"]))
            | set(re.findall(r"\b[A-Z]{0,2}MMA\.[A-Z0-9.]+", machine_code))
        ),
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", machine_code)),
        "shared_tiles": _shared_tiles(compiled.asm["ttgir"]),
    }


def _shared_tiles(ttgir: str) -> list[str]:
    """Tiles of one buffer that both an asynchronous product and other instructions read."""
    products = re.findall(r"warp_group_dot (%\w+), (%\w+),", ttgir)
    return sorted({name for pair in products for name in pair} & set(re.findall(r"local_load (%\w+)", ttgir)))


def amd_report(compiled) -> dict:
    assembly = compiled.asm["amdgcn"]
    spills = sum(int(count) for count in re.findall(r"\.vgpr_spill_count:\s*(\d+)", assembly))
    return {"instructions": sorted(set(re.findall(r"\bv_(?:mfma|wmma)\w+", assembly))), "spills": spills}
