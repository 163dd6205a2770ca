"""The spreading of tests over processes: which tests stay together, and that nothing of a result is lost."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import workers

CONFTEST = """
import pytest, workers

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return workers.make_scheduler(config, log)

@pytest.fixture(autouse=True)
def where(worker_id, request):
    with open("ran", "a") as file:
        file.write(f"{request.node.nodeid} {worker_id}\\n")
"""
TESTS = "import pytest\n@pytest.mark.parametrize('n', range(9))\ndef test_it(n):\n    assert n != {wrong}\n"


def test_one_process_where_more_would_not_help(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 2)
    quiet = {"paths_given": False, "has_gpu": False, "shows_output": False}
    assert workers.number_of_workers(**quiet) == 2
    assert [workers.number_of_workers(**quiet | {name: True}) for name in quiet] == [0, 0, 0]
    monkeypatch.setattr(workers, "cores", lambda: 1)
    assert workers.number_of_workers(**quiet) == 0
    monkeypatch.setattr(workers, "cores", lambda: 64)
    assert workers.number_of_workers(**quiet) == workers.MOST


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    workers.share_cores(4)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    workers.share_cores(8)
    assert os.environ["OMP_NUM_THREADS"] == "2", "what is set stays"


def test_the_places_exist():
    """A file that moved would lose its place without a word."""
    root = Path(__file__).parents[1]
    assert not [unit for unit in (*workers.TOGETHER, *workers.LONGEST_FIRST) if not (root / unit).exists()]


@pytest.mark.skipif(find_spec("xdist") is None, reason="pytest-xdist is not installed (`python dev.py test` does)")
@pytest.mark.parametrize("wrong", [-1, 5])
def test_units_stay_together_and_a_failure_fails_the_run(tmp_path, wrong):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name in ("tests/test_a.py", "tests/browser/test_b.py", "tests/browser/test_c.py", "tests/test_d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(TESTS.format(wrong=wrong if name.endswith("test_c.py") else -1))
    command = [sys.executable, "-m", "pytest", "-n", "2", "-ra", "--rootdir", str(tmp_path), "-p", "no:cacheprovider"]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    failed = int(wrong == 5)
    assert done.returncode == failed, done.stdout + done.stderr
    assert f"{36 - failed} passed" in done.stdout
    assert ("FAILED tests/browser/test_c.py::test_it[5]" in done.stdout) == bool(failed)
    ran = [line.split() for line in (tmp_path / "ran").read_text().splitlines()]
    processes = {}
    for test, process in ran:
        processes.setdefault(workers.unit_of(test), set()).add(process)
    assert len(ran) == 36 and all(len(found) == 1 for found in processes.values()), processes
    assert set.union(*processes.values()) == {"gw0", "gw1"}
