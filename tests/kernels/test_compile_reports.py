"""What a report finds in machine code that NVIDIA's assembler made of a few lines."""

import subprocess
from types import SimpleNamespace

import pytest
from compile_reports import NVIDIA_TOOLS, frame_size, nvidia_report

PTX = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry kernel(.param .u64 out, .param .u32 index)
{{
    {room}
    .reg .b64 %out, %at, %wide;
    .reg .b32 %index, %value;
    ld.param.u64 %out, [out];
    ld.param.u32 %index, [index];
    mov.u32 %value, %tid.x;
    {body}
    st.global.u32 [%out], %value;
    ret;
}}
"""
ROOM = ".local .align 4 .b8 room[64];"
# a place that is known only when it runs cannot stay in registers
LOCAL = """mul.wide.u32 %wide, %index, 4;
    mov.u64 %at, room;
    add.u64 %at, %at, %wide;
    st.local.u32 [%at], %value;
    ld.local.u32 %value, [room];"""


@pytest.fixture
def assembled(tmp_path):
    def assemble(body: str) -> SimpleNamespace:
        ptx = PTX.format(body=body, room=ROOM if body else "")
        (tmp_path / "kernel.ptx").write_text(ptx)
        command = [NVIDIA_TOOLS / "ptxas", "-arch=sm_80", tmp_path / "kernel.ptx", "-o", tmp_path / "kernel.cubin"]
        subprocess.run(command, check=True)
        return SimpleNamespace(asm={"ptx": ptx, "ttgir": "", "cubin": (tmp_path / "kernel.cubin").read_bytes()})

    return assemble


def test_local_memory_is_seen(assembled):
    compiled = assembled(LOCAL)
    assert frame_size(compiled.asm["cubin"]) == 64
    assert nvidia_report(compiled)["spills"] == 2


def test_a_kernel_without_it_is_not_disassembled(assembled, monkeypatch):
    compiled = assembled("")
    monkeypatch.setattr("compile_reports._machine_code", lambda _: pytest.fail("half a second for nothing"))
    assert frame_size(compiled.asm["cubin"]) == 0
    assert nvidia_report(compiled) == {"instructions": [], "spills": 0, "shared_tiles": [], "byte_loads": 0}


def test_a_file_that_says_nothing_is_no_file_without_spills(assembled):
    cubin = assembled("").asm["cubin"].replace(b".nv.info", b".nv.gone")
    with pytest.raises(ValueError, match="says nothing of its frame"):
        frame_size(cubin)
