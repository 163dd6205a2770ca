"""Fixtures of all tests: seed, poisoned memory, the real host in process and as a server, visible skips."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

if any(argument.endswith("dynamic") for argument in sys.argv):  # pytest reads --host-device after torch is imported
    import dynamic_vram

    dynamic_vram.before_torch()

import pytest
import torch
import workers
from comfyui_server import ComfyUIServer
from comfyui_source import find_host
from in_process_host import InProcessHost, make_importable

import svdquant_pack

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, by whichever test file comes first

NO_HOST = "needs ComfyUI: set COMFYUI_PATH to its folder, or run `python dev.py test`"
HOST_TESTS = {Path(__file__).parent / name for name in ("nodes", "families")}
_base = pytest.StashKey[Path]()


def pytest_addoption(parser):
    parser.addoption(
        "--host-device",
        choices=("cpu", "gpu", "dynamic"),
        default="cpu",
        help="where the in-process host computes (default: cpu); dynamic is a GPU with dynamic VRAM",
    )
    parser.addoption("--host-arguments", default="", help='more for its command line, as in "--fp16-unet --novram"')


def pytest_configure(config):
    # `python -m pytest` puts the checkout on the path, where `import nodes` would find the pack instead of the host
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != svdquant_pack.ROOT]
    config.pluginmanager.register(_CheckoutIsNoPackage())
    host = find_host()
    if host:
        config.stash[_base] = Path(tempfile.mkdtemp(prefix="svdquant-host-"))
        make_importable(
            host, config.stash[_base], config.getoption("--host-device"), config.getoption("--host-arguments")
        )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    paths_given = config.args_source is config.ArgsSource.ARGS
    number = workers.number_of_workers(paths_given, torch.cuda.is_available(), config.getoption("capture") == "no")
    if number:
        workers.share_cores(number)
    return number


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return workers.make_scheduler(config, log)


def pytest_unconfigure(config):
    if _base in config.stash:
        shutil.rmtree(config.stash[_base], ignore_errors=True)


class _CheckoutIsNoPackage:
    """Keeps pytest from importing the root __init__.py, which would load the pack a second time, under another name.

    A plugin, because a conftest is not asked about the folders above it.
    """

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path, parent):
        return pytest.Dir.from_parent(parent, path=path) if path == svdquant_pack.ROOT else None


class _NeedsHost(pytest.Module):
    """A test module that could not even be imported without the host."""

    def collect(self):
        pytest.skip(f"{self.path.name} {NO_HOST}", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    if HOST_TESTS & set(module_path.parents) and _base not in parent.config.stash:
        return _NeedsHost.from_parent(parent, path=module_path)
    return None


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):  # one of several processes
        items.sort(key=lambda item: workers.turn_of(item.nodeid))
    has_host = _base in config.stash
    gpu_host = config.getoption("--host-device") != "cpu"
    for item in items:
        if HOST_TESTS & set(item.path.parents) or {"host", "server"} & set(item.fixturenames):
            item.add_marker("host")
        needs_gpu, needs_host = item.get_closest_marker("gpu"), item.get_closest_marker("host")
        if needs_host and not has_host:
            item.add_marker(pytest.mark.skip(reason=NO_HOST))
        if needs_gpu and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU that torch can use"))
        elif needs_gpu and needs_host and not gpu_host:
            item.add_marker(pytest.mark.skip(reason="needs the host on the GPU: pytest --host-device gpu"))


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same random state."""
    torch.manual_seed(42)


@pytest.fixture(autouse=True)
def poisoned_memory(request):
    """Memory from torch.empty holds NaN (integers: the largest value), so reading what nobody wrote shows.

    Not in tests with the host: its code is not ours to find such reads in, and the mode would change its algorithms.
    """
    if request.node.get_closest_marker("host"):
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def host(pytestconfig) -> InProcessHost:
    """The real ComfyUI in this process, with this pack's nodes."""
    return InProcessHost(pytestconfig.stash[_base])


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A real ComfyUI server with this pack in a dashed folder of custom_nodes; models go to server.base / "models"."""
    with ComfyUIServer(find_host(), tmp_path_factory.mktemp("server"), device="cpu") as running:
        failures = running.import_failures()
        if failures:
            pytest.fail("the pack did not load:\n" + "\n".join(failures) + "\n" + running.log_text())
        yield running
