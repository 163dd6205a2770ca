"""Apply LoRAs: rows with a switch, a name and a strength, through the host's own executor."""

import pytest
import torch
from comfyui_server import ComfyUIError
from host_models import put_tiny
from lora_files import diffusers_lora, host_lora
from safetensors.torch import save_file
from sampling import relative_error, sample_flux

from svdquant_pack.svdq_core.errors import LoraError

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
        given |= {f"on_{i}": on, f"lora_{i}": name, f"strength_{i}": strength}
    return given


def stack(host, model, *values):
    return host.call("SVDQuantLoraStack", model=model, loras=rows(*values))


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
    with pytest.raises(Exception, match=r"row 2 .*stack-sdxl\.safetensors: none of its 1 keys.*SDXL"):
        stack(host, model, (True, NAMES[0], 0.8), (True, NAMES[2], 1.0))


def graph(**given) -> dict:
    loader = {"model_name": "svdq-int4-tiny.safetensors", "compute": "w4a16"}
    return {
        "1": {"class_type": "SVDQuantModelLoader", "inputs": loader},
        "2": {
            "class_type": "SVDQuantLoraStack",
            "inputs": {"model": ["1", 0], "loras": given["loras"]}
            | {f"loras.{name}": value for name, value in given.items() if name != "loras"},
        },
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 1]}},
    }


def test_in_a_graph_as_the_page_sends_it(host, model):
    shown = host.run(graph(**rows((True, NAMES[0], 0.8), (True, NAMES[1], 0.5), (False, NAMES[2], 1.0))))
    (text,) = shown["3"]["text"]
    assert text.count("layers matched") == 2 and "10 layers" in text
    with pytest.raises(ComfyUIError, match=r"lora_1|not in list"):
        host.run(graph(**rows((True, "absent.safetensors", 0.8))))


def test_the_number_of_rows_is_the_list_of_widgets(host):
    schema = host.nodes.NODE_CLASS_MAPPINGS["SVDQuantLoraStack"].INPUT_TYPES()["required"]["loras"]
    options = schema[1]["options"]
    assert [option["key"] for option in options] == [str(n) for n in range(1, 11)]
    assert list(options[1]["inputs"]["required"]) == ["on_1", "lora_1", "strength_1", "on_2", "lora_2", "strength_2"]


def test_strength_changes_the_picture_smoothly(host, model):
    plain = sample_flux(model)
    errors = [
        relative_error(sample_flux(stack(host, model, (True, NAMES[0], strength))[0]), plain)
        for strength in (0.0, 0.1, 0.2, 0.4)
    ]
    assert errors[0] == 0 and errors == sorted(errors) and errors[1] > 0


@pytest.mark.parametrize("count", ["11", "0x2", "many", "-1", "1" * 5000, "٣", None])
def test_a_number_of_rows_that_the_node_does_not_have(host, model, count):
    """As in a workflow of another version."""
    given = rows((True, NAMES[0], 0.8)) | {"loras": count}
    with pytest.raises(LoraError, match=r"is no number of rows that this node has\. Choose one from 1 to 10"):
        host.call("SVDQuantLoraStack", model=model, loras=given)


def test_a_row_that_is_missing(host, model):
    given = rows((True, NAMES[0], 0.8)) | {"loras": "2"}
    with pytest.raises(LoraError, match="row 2 of 2 is not in the graph"):
        host.call("SVDQuantLoraStack", model=model, loras=given)
