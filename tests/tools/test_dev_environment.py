"""The environment of dev.py: stamp, interrupted set-up, layer over another environment. pip is replaced by a record."""

import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import dev_environment
import pytest
from comfyui_source import find_host
from dev_environment import Environment, SetupError, python_of

REQUIREMENTS = ["torch==2.13.0", "numpy"]


@pytest.fixture
def pip(monkeypatch):
    """Replaces running commands; `pip.fails` lists requirements that cannot be installed."""
    record = SimpleNamespace(calls=[], fails=set())

    def run(*command, quiet=False):
        arguments = [str(part) for part in command]
        if "install" in arguments:
            wanted = arguments[arguments.index("--disable-pip-version-check") + 1 :]
            record.calls.append(wanted)
            return SimpleNamespace(returncode=int(bool(record.fails & set(wanted))))
        if "version_info" in arguments[-1]:
            return SimpleNamespace(returncode=0, stdout="3.11\n", stderr="")
        is_probe = "find_spec" in arguments[-1]
        return SimpleNamespace(returncode=int(is_probe), stdout="", stderr="")  # no optional package is there yet

    monkeypatch.setattr(dev_environment, "run", run)
    optional = dev_environment.OptionalPackage("triton", "triton==3.7.1", "kernels are not tested")
    monkeypatch.setattr(dev_environment, "optional_requirements", lambda: (optional,))
    return record


@pytest.fixture
def environment(tmp_path):
    made = Environment(parent=tmp_path)
    made.python.parent.mkdir(parents=True)
    made.python.touch()
    return made


def test_second_install_does_nothing(environment, pip):
    environment.install(REQUIREMENTS)
    environment.install(REQUIREMENTS)
    assert pip.calls == [REQUIREMENTS, ["triton==3.7.1"]]


def test_changed_requirements_are_installed(environment, pip):
    environment.install(REQUIREMENTS)
    environment.install([*REQUIREMENTS, "pillow"])
    assert [*REQUIREMENTS, "pillow"] in pip.calls


def test_missing_optional_package_is_a_note(environment, pip, capsys):
    pip.fails = {"triton==3.7.1"}
    environment.install(REQUIREMENTS)
    environment.note_missing()
    assert "without triton==3.7.1: kernels are not tested" in capsys.readouterr().out
    assert environment.works()


def test_failed_first_install_is_not_taken_for_complete(environment, pip):
    pip.fails = {"numpy"}
    with pytest.raises(SetupError, match="Without a network"):
        environment.install(REQUIREMENTS)
    assert not environment.works()
    assert environment.read_stamp() == {}


def test_failed_update_keeps_the_working_environment(environment, pip):
    environment.install(REQUIREMENTS)
    pip.fails = {"pillow"}
    with pytest.raises(SetupError):
        environment.install([*REQUIREMENTS, "pillow"])
    assert environment.works()
    environment.install(REQUIREMENTS)
    assert pip.calls.count(REQUIREMENTS) == 1, "what was there is still known to be there"


def test_interrupted_install_is_made_anew(environment, monkeypatch, pip):
    environment.install(REQUIREMENTS)

    def interrupted(*command, quiet=False):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dev_environment, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            environment.install(["torch==2.14.0"])
    assert not environment.works()
    (environment.folder / "half a package").touch()
    environment.create()
    assert not list(environment.folder.iterdir()), "a new one (which stays empty here, where no command runs)"


def test_environment_that_was_half_made_is_made_anew(tmp_path, monkeypatch, pip):
    environment = Environment(parent=tmp_path)
    whole_run = dev_environment.run

    def interrupted(*command, quiet=False):
        if "venv" in command:
            environment.python.parent.mkdir(parents=True)
            environment.python.touch()
            raise KeyboardInterrupt
        return whole_run(*command, quiet=quiet)

    with monkeypatch.context() as patch:
        patch.setattr(dev_environment, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            environment.create()
    assert environment.python.exists()
    assert not environment.works()


def test_broken_stamp_counts_as_none(environment, pip):
    environment.install(REQUIREMENTS)
    environment.stamp.write_text('{"digest": "ab')
    assert environment.read_stamp() == {}


def test_too_old_python_is_refused(monkeypatch):
    old = SimpleNamespace(returncode=0, stdout="3.8\n", stderr="")
    monkeypatch.setattr(dev_environment, "run", lambda *_, **__: old)
    with pytest.raises(SetupError, match=r"is Python 3\.8; 3\.10 or newer is needed"):
        dev_environment.check_version(Path("python3.8"))


def test_something_that_is_no_python_is_refused(tmp_path, monkeypatch):
    with pytest.raises(SetupError, match=r"does not start: .*Give a Python interpreter"):
        dev_environment.check_version(tmp_path / "nothing")
    other = SimpleNamespace(returncode=1, stdout="", stderr="broken\n")
    monkeypatch.setattr(dev_environment, "run", lambda *_, **__: other)
    with pytest.raises(SetupError, match="does not answer like a Python: broken"):
        dev_environment.check_version(Path("other"))


@pytest.mark.slow
def test_layer_uses_the_packages_below_and_leaves_them_alone(tmp_path):
    below = Path(sysconfig.get_path("purelib"))
    before = sorted(path.name for path in below.iterdir())
    layer = Environment(Path(sys.executable), parent=tmp_path)
    layer.create()
    assert layer.python == python_of(layer.folder)
    answer = dev_environment.run(
        layer.python, "-c", "import pytest, sys; print(pytest.__file__, sys.prefix)", quiet=True
    )
    assert str(layer.folder) in answer.stdout, answer.stderr
    assert sorted(path.name for path in below.iterdir()) == before
    assert layer.works()


def test_the_page_is_the_one_that_the_host_asks_for():
    host = find_host()
    if host is None:
        pytest.skip("needs ComfyUI")
    lines = (host / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert dev_environment.FRONT_END in [line.strip() for line in lines]


def test_what_drives_a_browser_is_installed_only_where_there_is_one(monkeypatch):
    def modules(browser):
        monkeypatch.setattr(dev_environment, "find_chromium", lambda: browser)
        return [package.module for package in dev_environment.optional_requirements()]

    assert "playwright" in modules("/usr/bin/chromium") and "playwright" not in modules(None)
    assert set(modules("/usr/bin/chromium")) - set(modules(None)) == {"playwright", "comfyui_frontend_package"}


def test_a_browser_that_came_later_is_noticed(environment, pip, monkeypatch):
    environment.install(REQUIREMENTS)
    driver = dev_environment.OptionalPackage("playwright", "playwright==1", "browser tests are skipped")
    monkeypatch.setattr(dev_environment, "optional_requirements", lambda: (driver,))
    environment.install(REQUIREMENTS)
    assert ["playwright==1"] in pip.calls
