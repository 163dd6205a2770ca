"""Hundreds of damaged calibration files and journals: refused in one sentence or what they were, and never slowly."""

import sys
import time
from random import Random

import file_mutations
import pytest
import torch
from file_mutations import Original

from svdquant_pack.svdq_core.errors import SVDQuantError
from svdquant_pack.svdq_core.models import FLUX
from svdquant_pack.svdq_core.quantize import PartReport
from svdquant_pack.svdq_core.quantize.calibrate import Collector
from svdquant_pack.svdq_core.quantize.calibration_file import Calibration
from svdquant_pack.svdq_core.quantize.calibration_fit import FittedCalibration
from svdquant_pack.svdq_core.quantize.journal import Journal, journal_folder, stored_bytes
from svdquant_pack.svdq_core.quantize.layout_plan import plan_layout

FILES = 600  # of each kind
SLOWEST = 10.0  # seconds for one; the machine may be busy
LAYER = "double_blocks.0.img_attn.proj"
JSON = [
    "",
    "{",
    "[]",
    "null",
    "3",
    "NaN",
    "[" * 50_000,
    '{"a": 1}',
    '[{"layer": 3}]',
    "9" * 5000,
    '{"a": [1, 2, 3, -4]}',
]


def metadata(random: Random, file: Original) -> tuple[bytes, bool]:
    """A text of the metadata is another one, or gone."""
    key = random.choice([*file.metadata, "format", "version"])
    changed = dict(file.metadata)
    value = random.choice([*JSON, None, "1", file.metadata.get(key, "").replace("0", "-1", 1)])
    if value is None:
        changed.pop(key, None)
    else:
        changed[key] = value
    return file.with_tensors({}, changed or {"nothing": ""}), True


def numbers(random: Random, file: Original) -> tuple[bytes, bool]:
    """A number within the JSON of the metadata is another one."""
    changed = dict(file.metadata)
    key = random.choice([key for key, value in changed.items() if any(c.isdigit() for c in value)])
    digits = [i for i, letter in enumerate(changed[key]) if letter.isdigit()]
    at = random.choice(digits)
    new = random.choice(["-1", "1e9", "99999999999999999999", "0.5", '"x"', "null", "[]", "NaN"])
    changed[key] = changed[key][:at] + new + changed[key][at + 1 :]
    return file.with_tensors({}, changed), True


def shape(random: Random, file: Original) -> tuple[bytes, bool]:
    name = file.pick(random)
    tensor = file.tensors[name]
    new = random.choice([tensor.reshape(-1), tensor[None], tensor[:0], tensor[:1], tensor.flatten()[:1].reshape(())])
    return file.with_tensors({name: new}), True


def dtype(random: Random, file: Original) -> tuple[bytes, bool]:
    name = file.pick(random)
    kinds = [torch.int8, torch.float16, torch.float64, torch.bool, torch.int64, torch.float8_e4m3fn]
    return file.with_tensors({name: file.tensors[name].float().to(random.choice(kinds))}), True


def names(random: Random, file: Original) -> tuple[bytes, bool]:
    name = file.pick(random)
    more = [name + ".gram.0.8", LAYER + ".gram.a.b", LAYER + ".gram.5", LAYER + ".gram.-1.4", LAYER + ".gram.0.1.2", ""]
    return file.with_tensors({random.choice([*more, name.upper()]): file.tensors[name].clone()}), True


def not_finite(random: Random, file: Original) -> tuple[bytes, bool]:
    name = random.choice([n for n in file.names if file.tensors[n].is_floating_point()])
    tensor = file.tensors[name].clone()
    tensor.view(-1)[random.randrange(tensor.numel())] = random.choice([float("nan"), float("inf"), -1e30])
    return file.with_tensors({name: tensor}), True


MUTATIONS = [
    *file_mutations.OF_ANY_FILE,
    metadata,
    numbers,
    shape,
    dtype,
    names,
    not_finite,
]


def run(original, path, use, capsys, kind):
    """Mutate, use, count; anything but a sentence with the file's name fails."""
    counts = {"refused": 0, "accepted": 0}
    started = time.perf_counter()
    for number in range(FILES):
        mutation, random = MUTATIONS[number % len(MUTATIONS)], Random(number)
        data, _ = mutation(random, original)
        path.write_bytes(data)
        begun, where = time.perf_counter(), f"{mutation.__name__}, {number}"
        try:
            use(where)
        except SVDQuantError as error:
            counts["refused"] += 1
            text = str(error)
            assert path.name in text and text.endswith(".") and "\n" not in text and len(text) < 1500, (where, text)
            text.encode()
        else:
            counts["accepted"] += 1
        assert time.perf_counter() - begun < SLOWEST, where
    with capsys.disabled():
        sys.stdout.write(
            f"\n{FILES} mutated {kind}: {counts['refused']} refused, {counts['accepted']} accepted, "
            f"{time.perf_counter() - started:.1f} s\n"
        )
    assert counts["refused"] > FILES / 2 and counts["accepted"] > FILES / 50


def test_calibrations(tmp_path, capsys):
    collector, g = Collector(tokens=40, hessians={LAYER: ((0, 128),)}), torch.Generator().manual_seed(0)
    for _ in range(2):
        collector.add(LAYER, torch.randn(2, 50, 128, generator=g))
    path = tmp_path / "recorded.safetensors"
    collector.save(path, {"architecture": "flux", "source": "x", "prompts": "3", "times": "[0.5]"})

    def use(where):
        calibration = Calibration(path)
        fitted = FittedCalibration(calibration, plan_layout(FLUX, {LAYER: (128, 128)}, 0), "flux")
        for name in fitted:
            found = fitted[name]
            assert found.channels == 128 and bool(torch.isfinite(found.mean_square).all()), where
        Collector.resume(calibration, tokens=20)

    use("as it was")
    run(Original(path.read_bytes()), path, use, capsys, "calibration files")


def test_journals(tmp_path, capsys):
    """What is accepted is the layer that was put, to the last bit: each tensor carries a sum."""
    target = tmp_path / "a.safetensors"
    journal, g = Journal(target, "fingerprint"), torch.Generator().manual_seed(0)
    report = PartReport(LAYER, (0, 64), (0, 64), "int4", 16, "none", "nearest", 0.125, True)
    stored = {"a.qweight": torch.randint(-8, 8, (64, 32), generator=g, dtype=torch.int8)}
    stored["a.proj_up"] = torch.randn(64, 16, generator=g)
    journal.put(LAYER, stored, [report])
    path = journal_folder(target) / f"{LAYER}.layer"

    def use(where):
        layer = journal.get(LAYER)
        for output in layer.outputs:
            if output.name in stored and output.dtype == stored[output.name].dtype:
                assert torch.equal(output.tensor(), stored[output.name].reshape(output.shape)), where
            output.tensor()
        for part in layer.reports:
            assert isinstance(f"{part.relative_error:.4f} {part.rows[0] + part.columns[1]} {part.rank:d}", str), where

    use("as it was")
    run(Original(path.read_bytes()), path, use, capsys, "journals")


@pytest.mark.parametrize("content", ["folder", "link", "loop", "unreadable", "names"])
def test_odd_things_in_a_journal(content, tmp_path):
    """They are left alone or started over, and the run goes on."""
    target = tmp_path / "a.safetensors"
    journal = Journal(target, "x")
    journal.put("b", {"w": torch.ones(3)})
    odd = journal.folder / "c.layer"
    if content == "folder":
        (odd / "d").mkdir(parents=True)
        (journal.folder / "e.part").mkdir()
    elif content == "link":
        odd.symlink_to(tmp_path / "nowhere")
    elif content == "loop":
        odd.symlink_to(odd)
    elif content == "unreadable":
        odd.write_bytes(b"x")
        odd.chmod(0)
    else:
        (journal.folder / "\udcff\n.layer").write_bytes(b"x")
    with journal.locked():
        assert journal.names() == {"b"}
        assert stored_bytes(target) > 0
    assert torch.equal(journal.get("b").outputs[0].tensor(), torch.ones(3))


def test_a_file_instead_of_the_journal(tmp_path):
    journal_folder(tmp_path / "a.safetensors").write_bytes(b"x")
    with pytest.raises(SVDQuantError, match=r"a\.safetensors\.journal: cannot be made"):
        Journal(tmp_path / "a.safetensors", "x")
