"""Writers of one name, in processes of their own: the second is told who is first, and a killed one leaves nothing."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest
import torch
from safetensors.torch import load

from svdquant_pack import ROOT
from svdquant_pack.svdq_core.checkpoint import save_tensors
from svdquant_pack.svdq_core.checkpoint.claim import claimed, part_of
from svdquant_pack.svdq_core.errors import SVDQuantError

ONE = {"a": torch.ones(4)}

# claim.py alone, without torch, so that a process starts in no time
CLAIM = """
import sys, types
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import svdquant_pack.svdq_core as core
room = types.ModuleType(core.__name__ + ".checkpoint")
room.__path__ = [core.__path__[0] + "/checkpoint"]
sys.modules[room.__name__] = room
from svdquant_pack.svdq_core.checkpoint.claim import claimed, part_of
target = Path(sys.argv[2])
with claimed(target):
    part = part_of(target)
    part.write_bytes(b"unfinished" * 1000)
    print("writing", flush=True)
    sys.stdin.readline()
    part.replace(target)
"""

# many small files under one name, each all of one value, refused ones tried again
STORM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from svdquant_pack.svdq_core.checkpoint import save_tensors
from svdquant_pack.svdq_core.errors import SVDQuantError
target, value, written, refused = Path(sys.argv[2]), int(sys.argv[3]), 0, 0
print("ready", flush=True)
sys.stdin.readline()
while written < 12:
    try:
        save_tensors(target, {f"t{i}": torch.full((100, 100 * value), value) for i in range(20)}, {"by": str(value)})
        written += 1
    except SVDQuantError as error:
        assert "another run is writing this file (" in str(error), error
        refused += 1
print(refused)
"""


def start(code, *arguments):
    command = [sys.executable, "-c", code, str(ROOT / "tools"), *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    return process


def end(process):
    process.communicate("\n", timeout=60)
    assert process.returncode == 0


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_second_writer_is_told_who_is_first(tmp_path):
    target = tmp_path / "x.safetensors"
    first = start(CLAIM, target)
    words = (
        rf"x\.safetensors: another run is writing this file \(process {first.pid} on {socket.gethostname()}, since 2"
    )
    with pytest.raises(SVDQuantError, match=words):
        save_tensors(target, ONE, {})
    assert not target.exists()
    save_tensors(tmp_path / "other.safetensors", ONE, {})  # another name, in the same folder, while that one writes
    end(first)
    assert target.read_bytes().startswith(b"unfinished")
    save_tensors(target, ONE, {})
    assert names(tmp_path) == ["other.safetensors", "x.safetensors"]


@pytest.mark.parametrize("same", [True, False], ids=["the same name", "another name"])
def test_what_a_killed_writer_left_is_removed(same, tmp_path):
    killed, alive = start(CLAIM, tmp_path / "killed.safetensors"), start(CLAIM, tmp_path / "alive.safetensors")
    killed.kill()
    killed.communicate()
    assert len(names(tmp_path)) == 4  # a lock and a part of each
    target = tmp_path / ("killed.safetensors" if same else "third.safetensors")
    save_tensors(target, ONE, {})
    left = names(tmp_path)
    assert len(left) == 3 and left[-1] == target.name
    assert [name.startswith("alive.safetensors.") for name in left] == [True, True, False]
    end(alive)
    assert names(tmp_path) == ["alive.safetensors", target.name]


def test_two_writers_never_mix(tmp_path):
    target = tmp_path / "x.safetensors"
    writers = [start(STORM, target, value) for value in (1, 2)]
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    reads = 0
    while any(writer.poll() is None for writer in writers):
        if target.exists():
            data = target.read_bytes()  # opened once: safetensors would open the name twice
            (length,) = struct.unpack("<Q", data[:8])
            tensors, by = load(data), float(json.loads(data[8 : 8 + length])["__metadata__"]["by"])
            assert {float(t.min()) for t in tensors.values()} == {by} == {float(t.max()) for t in tensors.values()}
            reads += 1
    assert reads and [writer.returncode for writer in writers] == [0, 0]
    assert names(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize(("age", "stays"), [(3600, True), (2 * 24 * 3600, False)])
def test_what_another_machine_writes_stays_while_it_changes(age, stays, tmp_path):
    """Whether its locks reach here is not known."""
    part = tmp_path / f"y.safetensors.{'0' * 8}-12-{'f' * 8}.part"
    part.write_bytes(b"")
    os.utime(part, (time.time() - age,) * 2)
    save_tensors(tmp_path / "x.safetensors", ONE, {})
    assert part.exists() == stays


def test_what_is_not_ours_stays(tmp_path):
    others = ["x.safetensors.part", "x.part", "x.safetensors.lock", "download-12-00000000.part"]
    for name in others:
        (tmp_path / name).write_bytes(b"")
    save_tensors(tmp_path / "x.safetensors", ONE, {})
    assert names(tmp_path) == sorted([*others, "x.safetensors"])


def test_one_thread_may_claim_twice_and_another_may_not(tmp_path):
    found = []

    def other():
        try:
            save_tensors(tmp_path / "x.safetensors", ONE, {})
        except SVDQuantError as error:
            found.append(str(error))

    with claimed(tmp_path / "x.safetensors"):
        save_tensors(tmp_path / "x.safetensors", ONE, {})
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert f"process {os.getpid()} on" in found[0]
    assert names(tmp_path) == ["x.safetensors"]


def test_long_names_have_room_for_lock_and_part(tmp_path):
    target = tmp_path / ("é" * 121 + ".safetensors")  # 254 bytes; a disk takes 255
    assert part_of(target).name.startswith("é" * 100 + "-")
    save_tensors(target, ONE, {})
    assert names(tmp_path) == [target.name]
