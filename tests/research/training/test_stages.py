"""Every stage runs from drawing to file, on pictures too small to learn anything from."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from svdquant_pack import ROOT
from svdquant_pack.demo.install import DECODER, ENCODER, FLUX, LORA, READER
from svdquant_pack.research.training import measure_all as evaluate
from svdquant_pack.research.training import train_autoencoder, train_flux, train_lora, train_reader
from svdquant_pack.research.training.options import Options, parse


def tiny(folder, **more):
    (folder / "work").mkdir(exist_ok=True)
    return Options(folder, folder / "work", **{"steps": 1, "side": 32, "batch": 2, "pictures": 4, **more})


def results(folder, name):
    return json.loads((folder / "work" / "results" / f"{name}.json").read_text())


@pytest.mark.slow
def test_stages_follow_each_other(tmp_path):
    options = tiny(tmp_path)
    for stage, files in (
        (train_autoencoder, (ENCODER, DECODER)),
        (train_reader, (READER,)),
        (train_flux, (FLUX,)),
        (train_lora, (LORA, "lora.png")),
        (evaluate, ("samples.png",)),
    ):
        assert not any((tmp_path / file).exists() for file in files)
        stage.run(options)
        assert all((tmp_path / file).exists() for file in files), stage.__name__
    assert results(tmp_path, "autoencoder")["steps"] == results(tmp_path, "flux")["steps"] == 1
    assert set(results(tmp_path, "lora")) >= {"without", "with"}
    assert {"usual, 20 steps", "difficult, 20 steps", "usual, 4 steps"} <= set(results(tmp_path, "evaluation"))


def test_a_seed_gives_the_same_flux(tmp_path):
    weights = []
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        train_flux.run(tiny(tmp_path / name, seed=seed, steps=2))
        weights.append(load_file(tmp_path / name / FLUX)["single_blocks.2.linear2.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.slow
def test_two_processes_train_one_flux_and_go_on(tmp_path):
    def torchrun(steps):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2"]
        command += ["--master-addr", "127.0.0.1", "--master-port", "29533", ROOT / "research" / "training" / "stage.py"]
        command += ["train_flux", "--output", tmp_path, "--side", "32", "--batch", "2", "--pictures", "4"]
        done = subprocess.run(
            [*command, "--steps", str(steps)], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    torchrun(1)
    assert "going on from step 1" in torchrun(2)
    assert results(tmp_path, "flux")["processes"] == 2
    assert results(tmp_path, "flux")["batch"] == 4


def test_times_move_down_late_in_the_training():
    early, late = (train_flux.draw_times(20000, p, torch.Generator().manual_seed(0)) for p in (0.0, 1.0))
    for times in (early, late):
        assert times.min() > 0
        assert times.max() <= 1
    assert ((late > 0.1) & (late < 0.4)).sum() > 1.3 * ((early > 0.1) & (early < 0.4)).sum()


def test_muon_gets_the_matrices_of_the_blocks():
    names = {name for name, weight in train_flux.Flux().named_parameters() if train_flux.is_block_matrix(name, weight)}
    assert len(names) == 22
    assert not any("mod" in name or "_in" in name or "final" in name for name in names)


def test_options_of_the_command_line(tmp_path):
    options = parse(["--output", str(tmp_path), "--seconds", "7"])
    assert (options.work, options.seconds, options.seconds_left) == (tmp_path / "work", 7.0, 7.0)
    assert options.model(FLUX).parent.name == "models"
    (tmp_path / FLUX).touch()
    assert options.model(FLUX) == tmp_path / FLUX
