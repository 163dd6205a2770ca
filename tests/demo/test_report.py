"""The report: sizes as they are on disk, shares, failures in the first line."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from svdquant_pack.demo import gallery, random_pixart, report, round_trip
from svdquant_pack.demo.check import Check
from svdquant_pack.demo.client import Client, WorkflowOutcome


@pytest.fixture
def finished(fake_server, lenient, tmp_path):
    """Make a Run with one check that passed or not."""
    client = Client(fake_server())
    files, _ = round_trip.run(client, lambda line: None)
    drawn = gallery.draw(client, {file.precision: file.path.name for file in files}, lenient, lambda line: None)
    source = tmp_path / "bf16.safetensors"
    source.write_bytes(bytes(4000))
    outcome = WorkflowOutcome(1.0, torch.zeros(1, 4, 8, 8), np.zeros((64, 64, 3), np.uint8))
    random = random_pixart.PixartResult(source, files[0].path, 0.125, 1.25, outcome, outcome, "what the node said")

    def make(passed):
        checks = [Check("a statement", passed, "a figure")]
        pictures = [tmp_path / "comparison.png", tmp_path / "images" / "1.png"]
        return report.Run("a machine", source, files, drawn, random, checks, [("a stage", 1.25)], pictures)

    return make


def test_first_line_is_the_verdict(finished, tmp_path):
    assert report.markdown(finished(True), tmp_path).startswith("# SVDQuant demo: all 1 checks passed\n")
    assert report.markdown(finished(False), tmp_path).startswith("# SVDQuant demo: 1 of 1 checks FAILED\n")
    assert "| **FAIL** | a statement | a figure |" in report.markdown(finished(False), tmp_path)


def test_figures(finished, tmp_path):
    text = report.markdown(finished(True), tmp_path)
    assert "| FLUX, BF16: bf16.safetensors | 0.0 MB | 100% |" in text
    assert "| FLUX, int4: svdq-int4-demo_flux.safetensors | 0.0 MB | 25% |" in text
    assert "int4 differs from BF16 by **12.5%**, another seed by 125.0%." in text
    assert "| a stage | 1.2 |" in text
    assert "| W4A4 | 2.5 |" in text
    assert "![comparison](comparison.png)" in text
    assert "- images/1.png" in text


def test_every_table_row_has_as_many_cells_as_its_head(finished, tmp_path):
    lines = report.markdown(finished(True), tmp_path).splitlines()
    for above, line in pairwise(lines):
        if above.startswith("|") and line.startswith("|"):
            assert above.count("|") == line.count("|")


def test_size_in_megabytes(tmp_path):
    file = Path(tmp_path / "file")
    file.write_bytes(bytes(1_260_000))
    assert report.megabytes(file) == "1.3 MB"
