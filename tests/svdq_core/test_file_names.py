"""Names of files to be: what some system cannot have is refused on all, in a sentence; random ones, too."""

import sys
import time
from random import Random

import pytest

from svdquant_pack.svdq_core.errors import SVDQuantError
from svdquant_pack.svdq_core.file_names import check_name

NAMES = 2000


@pytest.mark.parametrize("name", ["a", " svdq-int4_r32-x ", "v1.0/my model (2)", "日本語✨", "console", "com", "a.con"])
def test_good_names_stay(name):
    assert check_name(name, "output") == name.strip()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "a part of it is empty"),
        ("/etc/x", "a part of it is empty"),
        ("a//b", "a part of it is empty"),
        ("a/", "a part of it is empty"),
        ("../x", r"'\.\.' leads elsewhere"),
        ("a/./b", r"'\.' leads elsewhere"),
        ("a\0b", r"'\\x00' cannot be in a name"),
        ("a\nb", r"'\\n' cannot be in a name"),
        ("a:b", "':' cannot be in a name on Windows"),
        ("a\\b", "cannot be in a name on Windows"),
        ("what?", "cannot be in a name on Windows"),
        ("\ud800", r"'\\ud800' cannot be in a name"),
        ("\udcff", r"'\\udcff' cannot be in a name"),
        ("con", "'con' is a device on Windows"),
        ("CONIN$", r"'CONIN\$' is a device on Windows"),
        ("x/NUL.backup", "is a device on Windows"),
        ("lpt1", "is a device on Windows"),
        ("a./b", "begins or ends with a space or a dot"),
        ("a /b", "begins or ends with a space or a dot"),
        ("é" * 100, "has 200 bytes, more than 150"),
        ("a/" * 600 + "b", "it is too long"),
        ("x" * 100_000, "it is too long"),
    ],
)
def test_bad_names_are_refused(name, why):
    with pytest.raises(SVDQuantError, match=f"is no file name inside output: .*{why}") as caught:
        check_name(name, "output")
    assert len(str(caught.value)) < 400
    str(caught.value).encode()


def random_name(random: Random) -> str:
    letters = "abcXYZ019 ._-/\\:*?\"<>|\0\n\r\t\x7f\x85 éü日✨\u202e\u200d\ud800\udcff%~$'(){}[]"
    pieces = ["con", "NUL", "..", ".", "/", "COM1", "aux.txt", "model", "x" * 160, " ", "~", "C:", "//server/share"]
    count = random.choice([0, 1, 2, 3, 8, 40])
    return "".join(random.choice(pieces) if random.random() < 0.3 else random.choice(letters) for _ in range(count))


def test_random_names(tmp_path, capsys):
    """What is accepted can be written below the folder, and nowhere else; all else is refused in one sentence."""
    random, counts, started = Random(7), {"accepted": 0, "refused": 0}, time.perf_counter()
    for _ in range(NAMES):
        name = random_name(random)
        try:
            checked = check_name(name, "output")
        except SVDQuantError as error:
            counts["refused"] += 1
            str(error).encode()
            assert "\n" not in str(error) and len(str(error)) < 400
            continue
        counts["accepted"] += 1
        path = tmp_path / f"{checked}.safetensors"
        assert path.resolve().is_relative_to(tmp_path.resolve())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with capsys.disabled():
        sys.stdout.write(f"\n{NAMES} names: {counts['refused']} refused, {counts['accepted']} written\n")
    assert min(counts.values()) > NAMES / 20
    assert time.perf_counter() - started < 20
