"""The node Load Text Encoder (SVDQuant) in a graph: its lists, its types, its refusals."""

import shutil

import pytest
from comfyui_server import ComfyUIError
from tiny_files import DATA

NAME = "awq-int4-tiny-t5.safetensors"


@pytest.fixture(scope="module")
def file(host):
    shutil.copy(DATA / "families" / "t5_awq.safetensors", host.model_folder("text_encoders") / NAME)
    return NAME


def node_of(host):
    return host.nodes.NODE_CLASS_MAPPINGS["SVDQuantTextEncoderLoader"]


def test_types_are_the_stock_loaders(host, file):
    schema = {entry.id: entry for entry in node_of(host).define_schema().inputs}
    stock = set()
    for name in ("CLIPLoader", "DualCLIPLoader"):
        stock |= set(host.nodes.NODE_CLASS_MAPPINGS[name].INPUT_TYPES()["required"]["type"][0])
    assert set(schema["type"].options) <= stock
    assert file in schema["text_encoder"].options and schema["second"].options[0] == "none"


def test_a_graph_names_what_is_missing(host, file):
    graph = {
        "1": {"class_type": "SVDQuantTextEncoderLoader", "inputs": {"text_encoder": file, "type": "flux"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 0], "text": "a cat"}},
        "3": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["2", 0]}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}},
    }
    with pytest.raises(ComfyUIError, match="type flux takes T5-XXL and clip_l, and 1 file was chosen"):
        host.run(graph)


def test_another_file_runs_the_node_again(host, file):
    prints = node_of(host).fingerprint_inputs
    assert prints(file, type="flux", second="none") != prints(file, type="chroma", second="none")
    assert prints(file, type="flux", second=file) != prints(file, type="flux", second="none")
    assert prints(file, type="hidream", fourth=file) != prints(file, type="hidream")
