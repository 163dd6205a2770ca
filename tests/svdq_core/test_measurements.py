"""Measurements on disk: they come back, a damaged file is none, other machines' entries stay, nothing is half done."""

import json
import logging

import pytest
import torch

from svdquant_pack.svdq_core import measurements
from svdquant_pack.svdq_core.measurements import MOST_DEATHS, Record, attempt, keep, recall

MACHINE = {"gpu": "Some GPU", "driver": "580.65", "torch": "2.9", "pack": "1.0"}
TIMES = {"int4 64>64 r16": {"w4a8 with int8 tensor cores": 0.001}}
CHOICES = {"3 x int4 64>64 r16": {"mode": "w4a8", "paths": {}, "seconds": {"w4a8": 0.003}}}


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(measurements, "_of_this_process", {})
    return tmp_path / "state" / "measurements.json"


@pytest.fixture
def next_run(monkeypatch):
    return lambda: monkeypatch.setattr(measurements, "_of_this_process", {})


def test_a_record_comes_back_in_the_next_run(path, next_run):
    keep(Record(MACHINE, dict(TIMES), {}, dict(CHOICES)), path)
    next_run()
    found = recall(MACHINE, path)
    assert found.times == TIMES and found.choices == CHOICES
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", MACHINE)
def test_another_version_knows_nothing_and_loses_nothing(path, next_run, name):
    keep(Record(MACHINE, dict(TIMES)), path)
    other = MACHINE | {name: "another"}
    assert recall(other, path).times == {}
    keep(Record(other, {"int4 1>1 r16": {"w4a16 with plain torch": 1.0}}), path)
    next_run()
    assert recall(MACHINE, path).times == TIMES


def entry(**parts):
    """A file with one machine, of which some parts are not as they were written."""
    whole = {"machine": {}, "times": {}, "out": {}, "choices": {}} | parts
    return json.dumps({"format": 1, "machines": {"a": whole}})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": 1}',
        '{"format": 1, "machines": {"a": {"times": {"b": 3}}}}',
        json.dumps(
            {"format": 1, "machines": {"a": {"machine": {}, "times": {"s": {"w": -1.0}}, "out": {}, "choices": {}}}}
        ),
        json.dumps(
            {"format": 1, "machines": {"a": {"machine": {}, "times": {}, "out": {}, "choices": {"c": {"mode": 3}}}}}
        ),
    ],
)
def test_a_damaged_file_is_none_and_is_replaced(path, next_run, text, caplog):
    path.parent.mkdir()
    path.write_text(text)
    with caplog.at_level(logging.WARNING, "svdquant"):
        assert recall(MACHINE, path).times == {}
    assert "is damaged" in caplog.text and path.name in caplog.text
    keep(Record(MACHINE, dict(TIMES)), path)
    next_run()
    assert recall(MACHINE, path).times == TIMES


def test_a_newer_versions_file_is_left_unread(path, caplog):
    path.parent.mkdir()
    path.write_text('{"format": 2, "machines": []}')
    assert recall(MACHINE, path).times == {} and not caplog.text


def test_two_servers_at_once_the_first_entry_stands(path, next_run):
    """Each goes on with what it decided; on disk, and so in later runs, there is one answer."""
    keep(Record(MACHINE, dict(TIMES), {}, dict(CHOICES)), path)
    next_run()
    mine = {"3 x int4 64>64 r16": {"mode": "w4a16", "paths": {}, "seconds": {"w4a16": 0.003}}}
    keep(Record(MACHINE, {}, {}, dict(mine)), path)
    assert recall(MACHINE, path).choices == mine
    next_run()
    assert recall(MACHINE, path).choices == CHOICES


def test_what_is_true_of_a_moment_only_is_not_written(path, next_run):
    keep(Record(MACHINE, dict(TIMES)), path, on_disk=False)
    assert not path.exists() and recall(MACHINE, path).times == TIMES
    next_run()
    assert recall(MACHINE, path).times == {}


def test_a_folder_that_cannot_be_written_is_said_and_the_process_remembers(path, caplog):
    path.parent.write_text("a file where the folder should be")
    with caplog.at_level(logging.INFO, "svdquant"):
        keep(Record(MACHINE, dict(TIMES)), path)
    assert "cannot be kept" in caplog.text and recall(MACHINE, path).times == TIMES


def _measure(error=None):
    with attempt(Record(MACHINE), torch.device("cpu")) as allowed:
        if error is not None:
            raise error
    return allowed


def test_a_gpu_that_falls_over_is_not_measured_at_every_load(path, monkeypatch, caplog):
    monkeypatch.setattr(measurements, "default_path", lambda: path)
    for _ in range(MOST_DEATHS):
        with pytest.raises(RuntimeError, match="illegal"):
            _measure(RuntimeError("CUDA error: an illegal memory access was encountered"))
    with caplog.at_level(logging.INFO):
        assert not _measure()
    (note,) = path.parent.iterdir()
    assert str(note) in caplog.text
    note.unlink()
    assert _measure() and not list(path.parent.iterdir())


def test_what_came_to_its_end_or_was_stopped_leaves_no_note(path, monkeypatch):
    monkeypatch.setattr(measurements, "default_path", lambda: path)
    for _ in range(MOST_DEATHS + 1):
        with pytest.raises(KeyboardInterrupt):
            _measure(KeyboardInterrupt())
        assert _measure()
    assert not list(path.parent.iterdir())
