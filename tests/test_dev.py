"""dev.py: choices, the host that is used, the commands; nothing is installed and nothing downloaded."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui_source import HostSourceError
from dev_environment import SetupError

from svdquant_pack import ROOT


@pytest.fixture(scope="module")
def dev():
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["dev"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def users_host(tmp_path):
    """What dev.py takes for a ComfyUI of the user's."""
    folder = tmp_path / "ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    for name in ("main.py", "nodes.py", "folder_paths.py"):
        (folder / name).write_text("")
    (folder / "requirements.txt").write_text("torch\nnumpy>=1.25.0\ncomfyui-frontend-package==1\n")
    return folder


@pytest.fixture
def set_up(dev, monkeypatch, tmp_path):
    """dev.set_up with a place of its own, that records instead of installing."""
    done = []

    class Recorder(dev.Environment):
        def __init__(self, over=None):
            super().__init__(over, tmp_path / "dev")

        def create(self):
            done.append(("create", self.over))

        def install(self, requirements):
            done.append(("install", requirements))

    monkeypatch.setattr(dev, "Environment", Recorder)
    monkeypatch.setattr(dev, "CHOICES", tmp_path / "dev" / "choices.json")
    monkeypatch.setattr(dev, "HOST_FOLDER", tmp_path / "dev" / "host")
    monkeypatch.setattr(dev, "fetch_archive", lambda *_: pytest.fail("must not download"))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)

    def call(*argv):
        done.clear()
        options, rest = dev.parse(["test", *map(str, argv)])
        return (*dev.set_up(options), rest, dict(done))

    return call


def listing(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_named_host_is_used_and_not_written_to(set_up, users_host):
    before = listing(users_host)
    _, host, rest, done = set_up("--host", users_host, "-k", "lora", "tests/kernels")
    assert host == users_host
    assert rest == ["-k", "lora", "tests/kernels"]
    assert done["install"][:2] == ["torch==2.13.0", "numpy>=1.25.0"], "what that host asks for, not what ours does"
    assert not any("frontend" in requirement for requirement in done["install"])
    assert listing(users_host) == before


def test_host_from_the_environment(set_up, users_host, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(users_host))
    assert set_up()[1] == users_host


def test_a_folder_that_is_no_host_is_refused_before_anything_is_made(set_up, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(HostSourceError, match=r"not a ComfyUI folder: main\.py, .* Give the folder that"):
        set_up("--host", tmp_path / "other")
    assert not (tmp_path / "dev").exists()


def test_missing_host_is_unpacked_once(set_up, dev, monkeypatch, users_host):
    fetched = []
    monkeypatch.setattr(dev, "fetch_archive", lambda python, downloads: fetched.append(downloads))
    monkeypatch.setattr(dev, "unpack_host", lambda archive, host: users_host.rename(host))
    dev.HOST_FOLDER.parent.mkdir()
    assert set_up()[1] == dev.HOST_FOLDER
    assert set_up()[1] == dev.HOST_FOLDER
    assert len(fetched) == 1


def test_torch_and_python_are_remembered(set_up, users_host):
    set_up("--host", users_host, "--torch", "torch==2.12.0")
    assert set_up("--host", users_host)[3]["install"][0] == "torch==2.12.0"
    python, _, _, done = set_up("--host", users_host, "--python", sys.executable)
    assert str(done["create"]) == sys.executable
    assert "venv-over-" in str(python)
    assert set_up("--host", users_host)[0] == python, "both choices are kept"


def test_kept_choice_is_taken_back(set_up, users_host):
    set_up("--host", users_host, "--python", sys.executable, "--torch", "torch==2.12.0")
    done = set_up("--host", users_host, "--python", "default", "--torch", "default")[3]
    assert done["create"] is None
    assert set_up("--host", users_host)[3]["install"][0] == "torch==2.13.0"


def test_choice_that_failed_is_not_kept(set_up, dev, users_host, monkeypatch):
    def fail(self, requirements):
        raise SetupError("no such torch")

    with monkeypatch.context() as patch:
        patch.setattr(dev.Environment, "install", fail)
        with pytest.raises(SetupError):
            set_up("--host", users_host, "--torch", "torch==0.0")
    assert set_up("--host", users_host)[3]["install"][0] == "torch==2.13.0"


def test_layered_environment_takes_the_torch_below(set_up, users_host):
    done = set_up("--host", users_host, "--python", sys.executable)[3]
    assert done["install"][0] == "torch"


@pytest.mark.parametrize("argv", [[], ["nonsense"]])
def test_unknown_command_names_the_known_ones(dev, argv, capsys):
    with pytest.raises(SystemExit) as exit_:
        dev.parse(argv)
    assert exit_.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_help_lists_every_command(dev, capsys):
    with pytest.raises(SystemExit):
        dev.parse(["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown and command.does in shown for name, command in dev.COMMANDS.items())


def test_help_after_a_command_is_the_commands(dev):
    assert dev.parse(["test", "--help"])[1] == ["--help"]


def test_commands_point_at_what_exists(dev):
    for command in dev.COMMANDS.values():
        script = command.arguments[0]
        path = ROOT / script.removeprefix("{root}/")
        assert script == "-m" or path.is_file() or (path / "__main__.py").is_file(), script


def test_command_runs_with_its_places_and_returns_its_exit_code(dev, tmp_path):
    report = "import os, sys; open(sys.argv[1], 'w').write(os.environ['COMFYUI_PATH']); sys.exit(len(sys.argv))"
    command = dev.Command("", ("-c", report), developer=True)
    code = dev.run_command("x", command, Path(sys.executable), tmp_path, [str(tmp_path / "report"), "two"])
    assert code == 3
    assert (tmp_path / "report").read_text() == str(tmp_path)


def test_errors_end_in_one_sentence_and_a_code(dev, monkeypatch, capsys):
    def fail(options):
        raise SetupError("no network")

    monkeypatch.setattr(dev, "set_up", fail)
    assert dev.main(["test"]) == 2
    assert capsys.readouterr().out == "dev: error: no network\n"


USERS = ("check", "convert", "quantize", "migrate-workflow")
DEVELOPERS = ("demo", "test", "evaluate", "bench", "compile")


@pytest.fixture
def nothing_is_set_up(dev, monkeypatch, tmp_path):
    """A checkout whose environment is not there, and in which none may be made; returns the commands that were run."""
    ran = []
    for part in ("create", "install"):
        monkeypatch.setattr(dev.Environment, part, lambda *_: pytest.fail("must not set anything up"))
    monkeypatch.setattr(dev.Environment, "read_stamp", lambda self: {})
    monkeypatch.setattr(dev, "HOST_FOLDER", tmp_path / "host")
    monkeypatch.setattr(dev.subprocess, "run", lambda command, **more: ran.append((command, more)) or Done())
    return ran


class Done:
    returncode = 0


def test_every_command_is_a_users_or_a_developers(dev):
    assert {name for name, command in dev.COMMANDS.items() if command.developer} == set(DEVELOPERS)
    assert set(dev.COMMANDS) == {*USERS, *DEVELOPERS}


@pytest.mark.parametrize("name", USERS)
def test_users_commands_run_in_the_python_that_calls_them(dev, nothing_is_set_up, name, monkeypatch):
    assert dev.main([name, "in", "out"]) == 0
    ((command, more),) = nothing_is_set_up
    assert command[0] == sys.executable and command[-2:] == ["in", "out"]
    assert more["cwd"] is None
    assert more["env"]["SVDQUANT_TYPED"] == f"python dev.py {name}"


@pytest.mark.parametrize("name", [*USERS, *DEVELOPERS])
def test_help_sets_nothing_up(dev, nothing_is_set_up, name, capsys):
    assert dev.main([name, "--help"]) == 0
    if name in DEVELOPERS:
        assert not nothing_is_set_up
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: python dev.py {name} ") and dev.COMMANDS[name].does in shown


@pytest.mark.parametrize("name", USERS)
def test_usage_names_what_was_typed_and_needs_no_torch(dev, name):
    arguments = [argument.format(root=ROOT) for argument in dev.COMMANDS[name].arguments]
    bare = [sys.executable, "-S", *arguments, "--help"]  # no installed package can be imported
    variables = {**os.environ, "SVDQUANT_TYPED": f"python dev.py {name}"}
    shown = subprocess.run(bare, capture_output=True, text=True, check=True, env=variables).stdout
    assert shown.startswith(f"usage: python dev.py {name} ")


@pytest.mark.parametrize("name", DEVELOPERS)
def test_a_release_archive_says_that_a_clone_is_needed(dev, nothing_is_set_up, name, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nRepository = "https://example.org/pack"\n')
    for arguments in ([name], [name, "--help"]):
        assert dev.main(arguments) == 2
        said = capsys.readouterr().out
        assert "needs a git clone" in said and "git clone https://example.org/pack" in said
        assert len(said.splitlines()) == 1


def test_a_first_run_says_what_it_fetches_and_where(set_up, users_host, capsys, tmp_path):
    set_up("--host", users_host)
    said = capsys.readouterr().out
    assert "torch==2.13.0" in said and str(tmp_path / "dev") in said and "GB" in said
    assert "ComfyUI 0" not in said, "the user's own is taken"


def test_a_later_run_says_nothing_about_fetching(set_up, dev, users_host, capsys, monkeypatch):
    monkeypatch.setattr(dev.Environment, "read_stamp", lambda self: {"digest": "x"})
    set_up("--host", users_host)
    assert capsys.readouterr().out == ""
