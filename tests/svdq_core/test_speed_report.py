"""The speed report: every time and version, nothing about the user, and a sentence where there is no GPU."""

import json

import pytest
import torch
from measured_ways import MACHINE, Way

from svdquant_pack.kernels.gpus import GENERATIONS
from svdquant_pack.kernels.paths.contest import Entrant
from svdquant_pack.svdq_core import measured_choice, measurements, speed_report
from svdquant_pack.svdq_core.speed_report import random_model, without_paths, write_report

CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A CPU that counts as a GPU which nobody has timed, with tiny layers; w4a8 is the fastest."""
    ways = [Entrant("w4a4", Way("A")), Entrant("w4a8", Way("C")), Entrant("w4a16", Way("D", fails=True))]
    seconds = {"A": 0.002, "C": 0.001}
    row = next(row for row in GENERATIONS if row.name == "sm_89")
    monkeypatch.setattr(speed_report, "LAYERS", ((128, 64, False, 3), (64, 128, True, 2)))
    monkeypatch.setattr(measured_choice, "TOKENS", 64)
    monkeypatch.setattr(measured_choice, "entrants", lambda *_: ways)
    monkeypatch.setattr(measured_choice, "gpu_seconds", lambda _device, run: seconds[run.func.__self__.name])
    monkeypatch.setattr(measurements, "default_path", lambda: tmp_path / "measurements.json")
    monkeypatch.setattr(measurements, "_of_this_process", {})
    monkeypatch.setattr(speed_report, "describe_gpu", lambda _device: dict(MACHINE))
    monkeypatch.setattr(speed_report, "generation", lambda _device: row)
    monkeypatch.setattr(speed_report, "resolve_compute", lambda *_: ("w4a4", "by the table"))

    class Gpu:
        type, index = "cuda", 0

    monkeypatch.setattr(speed_report, "_measured", lambda p, _device, real=speed_report._measured: real(p, CPU))
    return Gpu()


def test_times_of_both_kinds_of_files(gpu, tmp_path):
    line = write_report(gpu, tmp_path / "speeds.json")
    report = json.loads((tmp_path / "speeds.json").read_text())
    assert "int4 files w4a8, nvfp4 files w4a8" in line
    assert report["machine"] == MACHINE and report["row"] == "sm_89" and report["evidence"]
    int4 = report["measured"]["int4"]
    assert int4["by_table"] == "w4a4" and int4["choice"] == "w4a8"
    assert int4["times"]["int4 64>128 r32 unsigned"] == {"w4a4 with A": 0.002, "w4a8 with C": 0.001}
    assert int4["seconds"] == {"w4a4": pytest.approx(0.010), "w4a8": pytest.approx(0.005)}
    assert "no such instruction" in int4["out"]["int4 128>64 r32"]["w4a16 with D"]


def test_no_later_run_goes_by_it(gpu, tmp_path):
    write_report(gpu, tmp_path / "speeds.json")
    assert not (tmp_path / "measurements.json").exists() and not measurements._of_this_process


def test_without_a_gpu_it_says_so(tmp_path):
    line = write_report(CPU, tmp_path / "speeds.json")
    assert "no GPU here" in line
    assert json.loads((tmp_path / "speeds.json").read_text())["measured"] == {}


@pytest.mark.parametrize(
    "text",
    [
        "FileNotFoundError: /home/ada/.triton/cache/x.so",
        r"OSError: C:\Users\ada\AppData\Local\x.pyd failed",
        "error in '/srv/ada/file.py', line 3",
        "on the machine lovelace-pc, user ada",
    ],
)
def test_nothing_about_the_user_is_left(text, monkeypatch):
    monkeypatch.setattr(speed_report.platform, "node", lambda: "lovelace-pc")
    monkeypatch.setattr(speed_report.getpass, "getuser", lambda: "ada")
    cleaned = without_paths({"out": [text, 1.5]})["out"]
    assert cleaned[1] == 1.5
    assert not any(word in cleaned[0].lower() for word in ("ada", "lovelace", "users", "home/")), cleaned[0]


def test_random_layers_are_those_of_flux():
    model = random_model("nvfp4")
    assert len(model.layers) == 266 and model.precision == "nvfp4"
    layer = model.layers["12288>3072.0"]
    layer.parts[0].check("a random layer")
    assert random_model("int4").layers["12288>3072.0"].parts[0].act_unsigned and not layer.parts[0].act_unsigned
