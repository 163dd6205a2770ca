"""dev.py quantize: a file out of a file, the same bytes however it was made, and sentences for what cannot be done."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from dense_files import write_dense
from pixart_files import pixart
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from svdquant_pack import ROOT
from svdquant_pack.svdq_core.apply_layer import dense_weight
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.checkpoint.container import DIFFUSERS_FILE
from svdquant_pack.svdq_core.errors import SVDQuantError
from svdquant_pack.svdq_core.quantize import QuantSpec, command
from svdquant_pack.svdq_core.quantize.calibrate import Collector
from svdquant_pack.svdq_core.quantize.journal import journal_folder
from svdquant_pack.svdq_core.quantize.overrides import Overrides

NAMES = ("double_blocks.0.img_attn.proj", "single_blocks.0.linear2")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_dense(tmp_path_factory.mktemp("source") / "dense.safetensors")


def run(*arguments, processes: int = 1):
    program = [str(ROOT / "svdq_core"), "quantize", *map(str, arguments), "--rank", "16", "--host", "none"]
    command = [sys.executable, *program]
    if processes > 1:
        options = ["--standalone", f"--nproc-per-node={processes}", "--no-python"]
        command = [sys.executable, "-m", "torch.distributed.run", *options, sys.executable, *program]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def call(capsys):
    """The command in this process, where what is asked does not depend on another: no torch is loaded once more."""
    main = runpy.run_path(str(ROOT / "svdq_core" / "__main__.py"), run_name="read")["main"]

    def run_here(*arguments) -> SimpleNamespace:
        code = main(["quantize", "--host", "none", "--device", "cpu", "--rank", "16", *map(str, arguments)])
        said = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=said.out, stderr=said.err)

    return run_here


@pytest.fixture(scope="module")
def made(source, tmp_path_factory) -> tuple[Path, str]:
    target = tmp_path_factory.mktemp("made") / "svdq.safetensors"
    done = run(source, target)
    assert done.returncode == 0, done.stderr
    return target, done.stdout


def test_the_file_is_the_model(source, made):
    target, said = made
    model = read_checkpoint(Checkpoint(target))
    assert len(model.layers) == 13 and model.ranks == [16]
    dense = load_file(source)
    for name, layer in model.layers.items():
        weight = dense[f"model.diffusion_model.{name}.weight"].float()
        assert (dense_weight(layer) - weight).norm() < 0.13 * weight.norm(), name
    for name, tensor in model.plain.items():
        assert torch.equal(tensor, dense[f"model.diffusion_model.{name}"])
    assert "no GPU is used" in said and "output error of 10 layers" in said
    assert not journal_folder(target).exists()


def test_what_the_file_says_about_its_making(made):
    with safe_open(made[0], framework="pt") as file:
        metadata = file.metadata()
    assert metadata["svdquant_source"] == "dense.safetensors"
    assert len(metadata["svdquant_source_hash"]) == 32
    assert "rank 16" in metadata["svdquant_method"] and "seed 0" in metadata["svdquant_method"]
    assert metadata["svdquant_calibration"] == "none"
    assert "method fast" in metadata["svdquant_method"]  # nothing is known of the inputs
    assert torch.__version__ in metadata["svdquant_made_with"]


@pytest.mark.host
def test_a_comfyui_says_what_is_in_the_file(source, tmp_path):
    """dev.py hands on its --host; inputs are then those of the real model on noise."""
    target = tmp_path / "asked.safetensors"
    command = [sys.executable, str(ROOT / "dev.py"), "quantize", "--host", os.environ["COMFYUI_PATH"]]
    kept = ["--keep", "double_blocks.*"]
    environment = {n: v for n, v in os.environ.items() if n != "COMFYUI_PATH"} | {"CUDA_VISIBLE_DEVICES": ""}
    command += [str(source), str(target), "--rank", "16", *kept]  # no --device: a machine without a GPU needs none
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "standard normal" not in done.stdout and "10 layers in int4" in done.stdout
    with safe_open(target, framework="pt") as file:
        assert "method best" in file.metadata()["svdquant_method"]  # nobody said --method
    model = read_checkpoint(Checkpoint(target))
    assert model.layers and all(name.startswith("single_blocks.") for name in model.layers)
    assert "alembic" not in done.stderr


def test_without_comfyui_it_says_so(made):
    assert "no ComfyUI was found" in made[1] and "standard normal" in made[1]


def test_two_processes_write_the_same_bytes(source, made, tmp_path):
    done = run(source, tmp_path / "two.safetensors", processes=2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two.safetensors").read_bytes() == made[0].read_bytes()
    assert done.stdout.count("tensors, ") == 1  # the first process alone speaks


STOPPED = """
import sys
sys.path.insert(0, {tools!r})
from pathlib import Path
from svdquant_pack.svdq_core.quantize.command import QuantizeRequest, quantize_file
from svdquant_pack.svdq_core.quantize.overrides import Overrides
from svdquant_pack.svdq_core.quantize.spec import QuantSpec
def stop(done, total, name):
    if done == 5:
        raise KeyboardInterrupt
quantize_file(QuantizeRequest(Path({source!r}), Path({target!r}), QuantSpec(rank=16), Overrides()), print, stop)
"""


def test_what_was_interrupted_goes_on(source, made, tmp_path):
    target = tmp_path / "again.safetensors"
    program = STOPPED.format(tools=str(ROOT / "tools"), source=str(source), target=str(target))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    stopped = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, check=False)
    assert b"KeyboardInterrupt" in stopped.stderr
    assert not target.exists() and len(list(journal_folder(target).glob("*.layer"))) == 5
    done = run(source, target)
    assert done.returncode == 0, done.stderr
    assert "5 layers were finished by an earlier run" in done.stdout
    assert target.read_bytes() == made[0].read_bytes()
    assert not journal_folder(target).exists()


def test_other_settings_start_over(source, call, caplog, tmp_path):
    target = tmp_path / "other.safetensors"
    folder = journal_folder(target)
    folder.mkdir()
    save_file({"x": torch.zeros(1)}, folder / "double_blocks.0.img_mod.lin.layer", {"fingerprint": "another"})
    caplog.set_level("INFO")
    done = call(source, target, "--keep", NAMES[0], "--keep", "*.linear2", "--precision", "nvfp4")
    assert done.returncode == 0, done.stderr
    assert "start over" in caplog.text and "earlier run" not in done.stdout
    model = read_checkpoint(Checkpoint(target))
    assert model.precision == "nvfp4"
    dense = load_file(source)
    for name in NAMES:
        assert f"{name}: stays in 16 bits" in done.stdout
        assert torch.equal(model.plain[f"{name}.weight"], dense[f"model.diffusion_model.{name}.weight"])


def test_the_worst_layers_stay_in_16_bits(source, made, call, tmp_path):
    worst = next(line for line in made[1].splitlines() if line.startswith("  ")).split()[0]
    done = call(source, tmp_path / "worst.safetensors", "--keep-worst", "1")
    assert done.returncode == 0, done.stderr
    model = read_checkpoint(Checkpoint(tmp_path / "worst.safetensors"))
    assert [name for name in model.plain if name.startswith(worst)] == [f"{worst}.weight", f"{worst}.bias"]
    assert f"{worst}: stays in 16 bits" in done.stdout


def test_int8(source, call, tmp_path):
    done = call(source, tmp_path / "int8.safetensors", "--precision", "int8")
    assert done.returncode == 0, done.stderr
    model = read_checkpoint(Checkpoint(tmp_path / "int8.safetensors"))
    assert {part.scheme for layer in model.layers.values() for part in layer.parts} == {"int8", "awq"}


def test_a_folder_of_diffusers_tells_the_image_size(call, tmp_path):
    folder, (_, theirs) = tmp_path / "transformer", pixart()
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in theirs.items()}, folder / DIFFUSERS_FILE)
    (folder / "config.json").write_text('{"sample_size": 128}', encoding="utf-8")
    done = call(folder, tmp_path / "pixart.safetensors")
    assert done.returncode == 0, done.stderr
    model = read_checkpoint(Checkpoint(tmp_path / "pixart.safetensors"))
    assert len(model.layers) == 6
    assert model.plain["pos_embed"].shape == (1, 64 * 64, 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("{source}", "{source}", "--overwrite"), "is the source itself"),
        (("{source}", "{made}"), "exists already"),
        (("{made}", "{new}"), "an SVDQuant model already"),
        (("{source}", "{new}", "--keep", "*.linear7"), "matches no layer"),
        (("{source}", "{new}", "--calibration", "{source}"), "not a calibration file"),
        (("{source}", "{new}", "--device", "cuda:9"), "--device cuda:9"),
        (("{source}", "{new}", "--rank", "7"), "rank 7"),
    ],
    ids=["onto itself", "target is there", "quantized source", "pattern", "calibration", "device", "rank"],
)
def test_what_cannot_be_done_is_said(source, made, call, tmp_path, arguments, sentence):
    places = {"source": source, "made": made[0], "new": tmp_path / "new.safetensors"}
    done = call(*[argument.format(**places) for argument in arguments])
    assert done.returncode == 1
    assert sentence in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "new.safetensors").exists()


def test_a_refusal_is_the_exit_code(source, made):
    done = run(source, made[0])
    assert done.returncode == 1 and "exists already" in done.stderr and "Traceback" not in done.stderr


def test_best_is_taken_where_inputs_are_known_and_nothing_else_was_asked_for(source, tmp_path):
    target, calibration = tmp_path / "new.safetensors", tmp_path / "calibration.safetensors"
    collector = Collector()
    for name, weight in load_file(source).items():
        short = name.removeprefix("model.diffusion_model.").removesuffix(".weight")
        if "_blocks." in short and weight.ndim == 2 and "mod" not in short:
            collector.add(short, torch.randn(64, weight.shape[1]))
    collector.save(calibration)
    keep = ["--keep", "double_blocks.*", "--overwrite"]
    for method, expected in (([], "best"), (["--method", "fast"], "fast")):
        done = run(source, target, "--calibration", str(calibration), *keep, *method)
        assert done.returncode == 0, done.stderr
        with safe_open(target, framework="pt") as file:
            assert f"method {expected}" in file.metadata()["svdquant_method"]
    partial = Collector()
    partial.add(NAMES[0], torch.randn(64, load_file(source)[f"model.diffusion_model.{NAMES[0]}.weight"].shape[1]))
    partial.save(calibration)
    done = run(source, target, "--calibration", str(calibration), *keep)
    assert done.returncode == 0, done.stderr  # best would refuse layers of which nothing is known


def test_best_needs_inputs(source, tmp_path):
    request = command.QuantizeRequest(source, tmp_path / "new.safetensors", QuantSpec(method="best"), Overrides())
    with pytest.raises(SVDQuantError, match=r"Name a ComfyUI \(--host\)"):
        command.quantize_file(request, print)
