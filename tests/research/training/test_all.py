"""The whole training ends in time, whatever its stages do."""

import importlib
import json
import time

import pytest

driver = importlib.import_module("svdquant_pack.research.training.all")

STAND_IN = """
import json, pathlib, sys, time
name, options = sys.argv[1], dict(zip(sys.argv[2::2], sys.argv[3::2]))
behaviour = json.loads(pathlib.Path(__file__).with_name("behaviour.json").read_text()).get(name, "good")
with open(pathlib.Path(options["--work"]) / "order.txt", "a") as file:
    print(name, file=file)
if behaviour == "hangs":
    time.sleep(60)
if behaviour == "fails":
    sys.exit(3)
results = pathlib.Path(options["--work"]) / "results" / f"{name}.json"
results.write_text(json.dumps({"deadline": options["--deadline"]}))
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the driver on stand-ins for the stages: run(seconds, gpus, name="hangs" or "fails")."""
    (tmp_path / "stage.py").write_text(STAND_IN)
    monkeypatch.setattr(driver, "STAGE", tmp_path / "stage.py")
    monkeypatch.setattr(driver, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(driver, "LAST_GRACE_SECONDS", 0.5)
    (tmp_path / "work" / "results").mkdir(parents=True)

    def start(seconds, gpus, **behaviour):
        (tmp_path / "behaviour.json").write_text(json.dumps(behaviour))
        begin = time.time()
        is_good = driver.train(driver.Training(tmp_path, tmp_path / "work", begin, seconds, gpus, ()))
        order = (tmp_path / "work" / "order.txt").read_text().split()
        return is_good, order, json.loads((tmp_path / "results.json").read_text()), time.time() - begin

    return start


def test_all_stages_run_in_order_and_leave_their_figures(run):
    is_good, order, figures, _ = run(30, 0)
    assert is_good
    assert order == ["train_autoencoder", "train_reader", "train_flux", "train_lora", "evaluate"]
    assert set(figures) == set(order)
    deadlines = [float(figures[name]["deadline"]) for name in order]
    assert deadlines == sorted(deadlines)


def test_two_stages_at_a_time_on_two_gpus(run, monkeypatch):
    monkeypatch.setattr(driver, "train_flux", lambda run: True)
    is_good, order, _, _ = run(30, 2)
    assert is_good
    assert set(order) == {"train_autoencoder", "train_reader", "warm_up", "train_lora", "evaluate"}


def test_a_failed_stage_does_not_stop_the_next(run):
    is_good, order, figures, _ = run(30, 0, train_autoencoder="fails")
    assert not is_good
    assert order[-1] == "evaluate"
    assert "train_autoencoder" not in figures


def test_a_stage_that_hangs_is_stopped_in_time(run):
    is_good, order, figures, seconds = run(12, 0, train_flux="hangs")
    assert not is_good
    assert seconds < 14
    assert order[2] == "train_flux"
    assert "train_flux" not in figures
    assert "train_lora" in figures
