"""pyproject.toml as the host and the registry read it."""

import re

import pytest
from pack import ROOT


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


@pytest.mark.host
def test_classifiers_are_ones_that_the_host_knows(metadata):
    # one unknown value among them makes the host drop all
    assert metadata.project.supported_os == ["OS Independent"]
    assert metadata.project.supported_accelerators == ["GPU :: NVIDIA CUDA", "GPU :: AMD ROCm"]
    assert metadata.project.supported_comfyui_version.startswith(">=")
