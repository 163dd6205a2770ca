"""What a wire brings is held to what a widget allows."""

import pytest
import torch
from host_models import put_dense, put_lora, put_tiny

from svdquant_pack.svdq_core.errors import SVDQuantError

NO_NUMBERS = (None, "strong", [], {}, object(), torch.zeros(3), float("nan"), float("inf"), 10**12, -(2**70))
NO_TEXTS = (None, [], {}, object(), torch.zeros(3), b"x")


@pytest.fixture(scope="module")
def model(host):
    name = put_tiny(host.model_folder("diffusion_models"))
    return host.call("SVDQuantModelLoader", model_name=name, compute="w4a16")[0]


@pytest.fixture(scope="module")
def good(host, model):
    """Inputs with which each node works."""
    folder = host.model_folder("diffusion_models")
    (dense,) = host.call("UNETLoader", unet_name=put_dense(folder), weight_dtype="default")
    image = torch.zeros(1, 8, 8, 3)
    return {
        "SVDQuantModelLoader": {"model_name": put_tiny(folder), "compute": "w4a8"},
        "SVDQuantLoraLoader": {
            "model": model,
            "lora_name": put_lora(host.model_folder("loras")),
            "strength": 1.0,
        },
        "SVDQuantExportModel": {"model": model, "format": "svdquant", "filename_prefix": "x", "overwrite": True},
        "SVDQuantCalibrationStart": {"model": dense, "name": "x", "take": 1, "tokens": 64, "gram_mib": 0},
        "SVDQuantCompareImages": {
            "reference": image,
            "image": image,
            "reference_name": "a",
            "image_name": "b",
            "other_size": "resize",
            "difference_scale": 0.0,
        },
        "SVDQuantQuantizeModel": {
            "model": dense,
            "precision": "int4",
            "activations": "w4a8",
            "rank": 16,
            "method": "fast",
            "filename_prefix": "x",
            "overwrite": True,
            "seed": 0,
            "keep_worst": 0,
            "error_limit": 0.0,
        },
    }


NODES = (
    *("SVDQuantModelLoader", "SVDQuantLoraLoader", "SVDQuantExportModel", "SVDQuantCalibrationStart"),
    *("SVDQuantCompareImages", "SVDQuantQuantizeModel"),
)


@pytest.mark.parametrize("node", NODES)
def test_every_input_refuses_what_it_cannot_be(host, good, node):
    tried = 0
    for widget in host.nodes.NODE_CLASS_MAPPINGS[node].define_schema().inputs:
        kind, given = widget.get_io_type(), good[node]
        if widget.id not in given:
            continue
        bad = NO_NUMBERS if kind in ("INT", "FLOAT") else (*NO_TEXTS, *((7, "caf\udce9") if kind == "COMBO" else ()))
        bad = (None, 7, "text", [], {}) if kind in ("MODEL", "IMAGE") else bad
        bad = (*bad, torch.zeros(3)) if kind == "MODEL" else bad
        bad = (None, "text", [], {}, torch.zeros(3)) if kind == "BOOLEAN" else bad
        for value in bad:
            if value is None and widget.optional:
                continue
            with pytest.raises(SVDQuantError, match=rf"^{widget.id} is .*, and takes .*\.$") as found:
                host.call(node, **(given | {widget.id: value}))
            assert str(found.value).encode() and len(str(found.value)) < 1000
            tried += 1
    assert tried > 8


def test_numbers_of_other_types_are_taken(host, good):
    text = host.call("SVDQuantLoraLoader", **(good["SVDQuantLoraLoader"] | {"strength": torch.tensor(0.5)}))[1]
    assert "at strength 0.5" in text
    assert host.call("SVDQuantLoraLoader", **(good["SVDQuantLoraLoader"] | {"strength": True}))[1].count("strength 1:")


def test_rows_of_apply_loras_look_after_their_own_lists(host, model):
    given = {"loras": "1", "loras.on_1": False, "loras.lora_1": "gone.safetensors", "loras.strength_1": 1.0}
    assert host.call("SVDQuantLoraStack", model=model, **given)[1] == "no LoRA is switched on"
    with pytest.raises(SVDQuantError, match="model is None, and takes a MODEL; is the node in front of it muted"):
        host.call("SVDQuantLoraStack", model=None, **given)


def test_nothing_on_an_optional_input_is_its_default(host, good):
    given = good["SVDQuantModelLoader"] | {"attention": None, "second_file": None}
    assert "int4" in host.call("SVDQuantModelLoader", **given)[1]


def test_a_calibration_is_a_path(host, good):
    for value in (7, [], object()):
        with pytest.raises(SVDQuantError, match=r"recorded is .*, and takes what Save Calibration gives"):
            host.call("SVDQuantQuantizeModel", **good["SVDQuantQuantizeModel"], recorded=value)
