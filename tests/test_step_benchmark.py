"""bench --step in small: the host's own model class, every format and suffix, no graph break."""

import os
import re
import subprocess
import sys

import pytest
import torch
from comfyui_source import find_host

from svdquant_pack import ROOT

pytestmark = pytest.mark.skipif(find_host() is None, reason="needs ComfyUI: set COMFYUI_PATH to its folder")
SMALL = "--device cpu --tiny --pixels 128 --text 16 --repeats 1 --turns 1"
NUMBER = r" \d+\.\d+x? "


def run(*arguments: str, fails: bool = False) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "layers.py"), "--step", *SMALL.split(), *arguments]
    variables = dict(os.environ, COMFYUI_PATH=str(find_host()), PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=600, check=False)
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr if fails else done.stdout


def table(text: str, head: str) -> dict[str, list[str]]:
    """The rows below a headline, by name."""
    lines = text[text.index(f"| {head}") :].partition("\n\n")[0].splitlines()[2:]
    return {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines}


def test_every_format_and_a_whole_image():
    text = run("--pixels", "64,96", "--batch", "1,2", "--image", "--image-steps", "2")
    sizes = "64 x 64, batch 1: 32", "64 x 64, batch 2: 64", "96 x 96, batch 2: 104"
    for head in (f"flux1, {size} tokens" for size in sizes):
        rows = table(text, head)
        for name in (
            "BF16",
            "BF16, cuDNN attention",
            "ComfyUI fp8 scaled",
            "ComfyUI int8",
            "ComfyUI int8 ConvRot",
            "ComfyUI ConvRot W4A4",
            "GGUF Q4_0, unpacked in each call",
            "NF4, unpacked in each call",
            "ours w4a8, rank 32",
            "ours w4a8, rank 32, ComfyUI's attention",
            "ours w4a8, rank 32, one CUDA graph",
            "ours w4a8, rank 32, LoRA",
            "ours w4a4, rank 32",
        ):
            assert all(re.fullmatch(NUMBER, cell) for cell in rows[name][:4]), name
        assert rows["ours w4a8, rank 32, one CUDA graph"][5] == " 0.0e+00 "
    images = table(text, "96 x 96, 2 steps, from noise to latent")
    assert len(images) == 13 and all(re.fullmatch(NUMBER, cell) for cells in images.values() for cell in cells)


def test_compiled_rows_compile_whole_blocks():
    text = run("--rows", "bf16,w4a8+compile,w4a16+lora+compile", "--backend", "aot_eager")
    notes = re.findall(r"(\w+): 2 graphs for 4 blocks in \d+ s, 0 graph breaks, (\S+) from eager", text)
    assert [name for name, _ in notes] == ["w4a8", "w4a16"]
    assert all(float(error) < 0.05 for _, error in notes)


def test_another_family_whose_layers_share_inputs():
    rows = table(run("--model", "krea2", "--rows", "bf16,int8,w4a8,w4a8+lora"), "krea2, 128 x 128, batch 1: 80 tokens")
    assert len(rows) == 4 and all(re.fullmatch(NUMBER, cells[0]) for cells in rows.values())


def test_nothing_is_begun_after_the_deadline():
    text = run("--rows", "bf16,w4a8,w4a4", "--seconds", "0.001")
    assert text.count("left out, 0.001 s had passed") >= 3


def test_a_row_that_does_not_exist():
    text = run("--rows", "bf16,w4a8+magic", fails=True)
    assert "w4a8+magic: a row is one of" in text and "+cudnn" in text


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_weights_that_are_unpacked_in_each_call(monkeypatch, device):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from weight_only import NF4_VALUES, NF4Linear, Q4Linear

    codes = torch.randint(0, 256, (6, 64), dtype=torch.uint8)
    x, bias = torch.randn(5, 128), torch.randn(6)
    scales, maxima = torch.rand(6, 4).half(), torch.rand(6, 2)
    q4, nf4 = torch.empty(6, 128), torch.empty(6, 128)
    for row in range(6):
        for i in range(128):
            block, place = divmod(i, 32)
            byte = int(codes[row, block * 16 + place % 16])
            q4[row, i] = ((byte >> 4 if place >= 16 else byte & 15) - 8) * float(scales[row, block])
            byte = int(codes[row, i // 2])
            nf4[row, i] = NF4_VALUES[byte & 15 if i % 2 else byte >> 4] * float(maxima[row, i // 64])
    # Q4_0 multiplies in float16, as its scales are
    for dense, linear, near in ((q4, Q4Linear(codes, scales, bias), 1e-3), (nf4, NF4Linear(codes, maxima, bias), 1e-6)):
        moved, expected = linear.to(device), torch.nn.functional.linear(x, dense, bias)
        torch.testing.assert_close(moved.dense_weight(torch.float32).cpu(), dense, atol=1e-6, rtol=near)
        torch.testing.assert_close(moved(x.to(device)).cpu(), expected, atol=100 * near, rtol=near)


def test_one_block_is_refused():
    assert "--blocks: at least 2" in run("--blocks", "1", fails=True)
