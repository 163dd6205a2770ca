"""pyproject.toml as the host and the registry read it."""

import re

import pytest
from PIL import Image

from svdquant_pack import ROOT


@pytest.fixture(scope="module")
def metadata():
    from comfy_config import config_parser

    return config_parser.extract_node_configuration(str(ROOT))


@pytest.mark.host
def test_registry_fields(metadata):
    project, comfy = metadata.project, metadata.tool_comfy
    assert "comfyui" not in project.name.lower(), "the registry wants a name without it"
    assert re.fullmatch(r"\d+\.\d+\.\d+", project.version)
    assert project.dependencies == [], "installing the pack must not change anybody's torch"
    assert (ROOT / project.license.file).read_text(encoding="utf-8").lstrip().startswith("Apache License")
    assert comfy.publisher_id and comfy.display_name == "ComfyUI-SVDQuant"


def table():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.host
def test_the_name_is_one_that_the_registry_takes(metadata):
    name = metadata.project.name
    assert len(name) < 100 and re.fullmatch(r"[A-Za-z](?:[-._]?[A-Za-z0-9])*", name)
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", metadata.tool_comfy.publisher_id)
    assert 20 < len(metadata.project.description) < 200


def test_repository_and_icon_are_addresses_of_one_place():
    """The registry wants whole addresses; a project file cannot put one together from the other."""
    repository, icon = table()["project"]["urls"]["Repository"], table()["tool"]["comfy"]["Icon"]
    owner, name = re.fullmatch(r"https://github\.com/([\w.-]+)/([\w.-]+)", repository).groups()
    prefix = f"https://raw.githubusercontent.com/{owner}/{name}/main/"
    assert icon.startswith(prefix), "the owner was changed in one place only"
    file = ROOT / icon.removeprefix(prefix)
    assert file.suffix in (".svg", ".png", ".jpg", ".gif")
    with Image.open(file) as picture:
        assert picture.width <= 800 and picture.height <= 400, "the registry's limit"


def test_the_icon_is_in_the_release_and_in_the_repository():
    icon = table()["tool"]["comfy"]["Icon"].partition("/main/")[2]
    ignored = (ROOT / ".comfyignore").read_text(encoding="utf-8").split()
    assert not icon.startswith(tuple(ignored))


@pytest.mark.host
def test_classifiers_are_ones_that_the_host_knows(metadata):
    # one unknown value among them makes the host drop all
    assert metadata.project.supported_os == ["OS Independent"]
    assert metadata.project.supported_accelerators == ["GPU :: NVIDIA CUDA", "GPU :: AMD ROCm"]
    assert metadata.project.supported_comfyui_version.startswith(">=")
