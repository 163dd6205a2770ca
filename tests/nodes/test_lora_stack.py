"""Apply LoRAs: rows with a switch, a name and a strength, through the host's own executor."""

import pytest
import torch
from comfyui_server import ComfyUIError
from host_models import put_tiny
from lora_files import diffusers_lora, host_lora
from safetensors.torch import save_file
from sampling import relative_error, sample_flux

from svdquant_pack.svdq_core.errors import SVDQuantError

NAMES = ("stack-a.safetensors", "stack-b.safetensors", "stack-sdxl.safetensors")


@pytest.fixture(scope="module")
def model(host):
    folder = host.model_folder("loras")
    save_file(diffusers_lora(5), folder / NAMES[0])
    save_file(host_lora(6), folder / NAMES[1])
    save_file({"lora_unet_input_blocks_1_0.lora_up.weight": torch.zeros(4, 4)}, folder / NAMES[2])
    return host.call(
        "SVDQuantModelLoader", model_name=put_tiny(host.model_folder("diffusion_models")), compute="w4a16"
    )[0]


def rows(*values: tuple[bool, str, float]) -> dict:
    """What the node gets for these rows."""
    given = {"loras": str(len(values))}
    for i, (on, name, strength) in enumerate(values, start=1):
        given |= {f"loras.on_{i}": on, f"loras.lora_{i}": name, f"loras.strength_{i}": strength}
    return given


def stack(host, model, *values):
    return host.call("SVDQuantLoraStack", model=model, **rows(*values))


def test_rows_equal_a_chain_of_loaders(host, model):
    stacked, report = stack(host, model, (True, NAMES[0], 0.8), (True, NAMES[1], -0.5))
    assert NAMES[0] in report and NAMES[1] in report
    chained = model
    for name, strength in ((NAMES[0], 0.8), (NAMES[1], -0.5)):
        (chained,) = host.call("LoraLoaderModelOnly", model=chained, lora_name=name, strength_model=strength)
    assert torch.equal(sample_flux(stacked), sample_flux(chained))


def test_a_row_that_is_off_does_nothing(host, model):
    plain = sample_flux(model)
    both, report = stack(host, model, (False, NAMES[0], 0.8), (True, NAMES[1], 0.5))
    one, _ = host.call("SVDQuantLoraLoader", model=model, lora_name=NAMES[1], strength=0.5)
    assert NAMES[0] not in report
    assert torch.equal(sample_flux(both), sample_flux(one))
    none, report = stack(host, model, (False, NAMES[0], 0.8), (False, NAMES[2], 1.0))
    assert torch.equal(sample_flux(none), plain)
    assert report == "no LoRA is switched on"


def test_a_row_that_fits_nothing_says_which(host, model):
    with pytest.raises(Exception, match=r"row 2: stack-sdxl\.safetensors: none of its 1 keys.*SDXL"):
        stack(host, model, (True, NAMES[0], 0.8), (True, NAMES[2], 1.0))


def graph(**given) -> dict:
    loader = {"model_name": "svdq-int4-tiny.safetensors", "compute": "w4a16"}
    return {
        "1": {"class_type": "SVDQuantModelLoader", "inputs": loader},
        "2": {
            "class_type": "SVDQuantLoraStack",
            "inputs": {"model": ["1", 0], **given},
        },
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 1]}},
    }


def test_in_a_graph_as_the_page_sends_it(host, model):
    shown = host.run(graph(**rows((True, NAMES[0], 0.8), (True, NAMES[1], 0.5), (False, NAMES[2], 1.0))))
    (text,) = shown["3"]["text"]
    assert text.count("layers matched") == 2 and "10 layers" in text


def test_a_file_that_is_gone_matters_only_where_its_row_is_on(host, model):
    off = rows((True, NAMES[0], 0.8), (False, "absent.safetensors", 0.8))
    (text,) = host.run(graph(**off))["3"]["text"]
    assert text.count("layers matched") == 1
    with pytest.raises(ComfyUIError, match=r"row 2: absent\.safetensors is not in models/loras.*switch the row off"):
        host.run(graph(**rows((True, NAMES[0], 0.8), (True, "absent.safetensors", 0.8))))


def test_rows_may_be_empty_or_missing(host, model):
    plain = sample_flux(model)
    for given in ({}, rows((True, "None", 1.0)), {"loras": "3"}):
        assert torch.equal(sample_flux(host.call("SVDQuantLoraStack", model=model, **given)[0]), plain)
    gap = rows((True, "None", 1.0), (True, NAMES[1], 0.5))
    one, _ = host.call("SVDQuantLoraLoader", model=model, lora_name=NAMES[1], strength=0.5)
    assert torch.equal(sample_flux(host.call("SVDQuantLoraStack", model=model, **gap)[0]), sample_flux(one))


def test_new_rows_are_empty_and_old_names_hold(host):
    """The order and names of the widgets are what saved workflows, old ones too, are read by."""
    inputs = host.nodes.NODE_CLASS_MAPPINGS["SVDQuantLoraStack"].INPUT_TYPES()["optional"]
    expected = [f"loras.{part}_{n}" for n in range(1, 11) for part in ("on", "lora", "strength")]
    assert list(inputs) == ["loras", *expected]
    assert inputs["loras"][1]["options"] == [str(n) for n in range(1, 11)]
    assert all(inputs[f"loras.lora_{n}"][1]["default"] == "None" for n in range(1, 11))


def test_strength_changes_the_picture_smoothly(host, model):
    plain = sample_flux(model)
    errors = [
        relative_error(sample_flux(stack(host, model, (True, NAMES[0], strength))[0]), plain)
        for strength in (0.0, 0.1, 0.2, 0.4)
    ]
    assert errors[0] == 0 and errors == sorted(errors) and errors[1] > 0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"loras.lora_1": {"a": 1}}, "row 1: dict is no name of a file"),
        ({"loras.lora_1": 7}, "row 1: int is no name of a file"),
        ({"loras.lora_1": "caf\udce9"}, r"row 1: caf\\udce9 is not in models/loras"),
        (
            {"loras.lora_1": "tiny.safetensors", "loras.strength_1": "strong"},
            "strength_1 is strong, and takes",
        ),
        (
            {"loras.lora_1": "tiny.safetensors", "loras.strength_1": [1]},
            "strength_1 is a list, and takes",
        ),
    ],
)
def test_values_that_the_host_does_not_look_at(host, model, row, words):
    with pytest.raises(SVDQuantError, match=words) as found:
        host.call("SVDQuantLoraStack", model=model, loras="1", **row)
    assert str(found.value).encode()
