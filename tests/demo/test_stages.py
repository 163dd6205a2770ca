"""The whole demo against a stand-in for the host: what it posts, writes and answers, and that it can fail."""

import pytest
import torch
from PIL import Image

from svdquant_pack.demo import random_pixart, stages
from svdquant_pack.demo.gallery import COLUMNS, SUBJECTS


@pytest.fixture
def demo(monkeypatch, tmp_path, fake_server, lenient):
    """Run the demo on a FakeServer; return (exit code, server, output folder)."""
    monkeypatch.setattr(random_pixart, "random_pixart", lambda: {"x_embedder.proj.bias": torch.zeros(4)})
    monkeypatch.setattr(stages, "Judge", lambda: lenient)

    def run(wrong="", missing=""):
        server = fake_server(wrong)
        server.nodes.discard(missing)
        monkeypatch.setattr(stages, "ComfyUIServer", lambda host, base: server)
        output = tmp_path / "output"
        places = {"--host": tmp_path, "--base": server.base, "--output": output}
        code = stages.main([str(part) for pair in places.items() for part in pair])
        assert not server.is_running
        return code, server, output

    return run


def test_a_good_run_leaves_pictures_and_a_report(demo, capsys):
    code, _, output = demo()
    printed = capsys.readouterr().out
    assert code == 0
    assert f"comparison: {output / 'comparison.png'}" in printed
    assert f"report:     {output / 'report.md'}" in printed
    assert "FAIL" not in printed

    report = (output / "report.md").read_text(encoding="utf-8")
    assert report.startswith("# SVDQuant demo: all 12 checks passed")
    assert "random" in report
    assert "report of a model" in report
    for picture in [line.removeprefix("- ") for line in report.splitlines() if line.startswith("- images/")]:
        with Image.open(output / picture) as image:
            image.verify()
    with Image.open(output / "comparison.png") as sheet:
        assert sheet.width > 1500 and sheet.height > sheet.width


def test_every_caption_is_drawn_in_every_way(demo):
    _, server, output = demo()
    drawn = {path.stem for path in (output / "images").glob("[0-9]*.png")}
    ways = [column.name.lower().replace(" ", "_") + lora for column in COLUMNS for lora in ("", "_lora")]
    assert drawn == {f"{number}_{way}" for number in range(1, len(SUBJECTS) + 1) for way in ways}
    samplers = [graph["sampler"]["inputs"] for graph in server.graphs if "caption" in graph]
    assert {(s["sampler_name"], s["scheduler"], s["cfg"]) for s in samplers} == {("euler", "simple", 1.0)}
    computes = {
        (graph["model"]["inputs"]["compute"], server.precisions[graph["model"]["inputs"]["model_name"]])
        for graph in server.graphs
        if "caption" in graph and graph["model"]["class_type"] == "SVDQuantModelLoader"
    }
    assert computes == {("w4a8", "int4"), ("w4a4", "int4"), ("w4a4", "nvfp4")}


@pytest.mark.parametrize(
    ("wrong", "statement"),
    [
        ("SVDQuantModelLoader", "quantized in the graph = saved and loaded again"),
        ("LoraLoaderModelOnly", "LoraLoaderModelOnly and SVDQuantLoraLoader give the same picture"),
    ],
)
def test_a_picture_that_changes_fails_the_demo(demo, capsys, wrong, statement):
    code, _, output = demo(wrong)
    assert code == 1
    report = (output / "report.md").read_text(encoding="utf-8")
    assert "checks FAILED" in report.splitlines()[0]
    failed = [line for line in report.splitlines() if "**FAIL**" in line]
    assert any(statement in line for line in failed)
    assert "FAIL" in capsys.readouterr().out


def test_a_pack_that_did_not_load_is_named(demo, capsys):
    code, _, _ = demo(missing="SVDQuantLoraLoader")
    assert code == 1
    assert "no node SVDQuantLoraLoader: Cannot import ComfyUI-SVDQuant: a reason" in capsys.readouterr().err
