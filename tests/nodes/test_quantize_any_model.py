"""The workflow quantize-any-model, as it is posted, on tiny models of seven families: a file, a report, steps."""

import json
from itertools import pairwise

import comfy.model_management
import pytest
import torch
from cheap_quantizing import make_cheap
from families.models import detected_as, load_dense, on_device
from families.network import Sizes
from families.registry import FAMILIES
from safetensors.torch import save_file
from sampling import relative_error

from svdquant_pack import ROOT

NAMES = ("zimage", "krea2", "wan_t2v", "ltx23", "minimax_h3", "sdxl", "hidream")
SIGMAS = (0.9, 0.6, 0.3, 0.0)
KEPT = ("UNETLoader", "SVDQuantQuantizeModel", "PreviewImage")  # the rest wants real text encoders


def graph_for(file: str, prefix: str) -> dict:
    """The workflow's own nodes from the file to the plot, with the report shown."""
    api = json.loads((ROOT / "workflows" / "api" / "quantize-any-model.json").read_text(encoding="utf-8"))
    graph = {number: node for number, node in api.items() if node["class_type"] in KEPT}
    by_class = {node["class_type"]: number for number, node in graph.items()}
    assert set(by_class) == set(KEPT)
    graph[by_class["UNETLoader"]]["inputs"]["unet_name"] = file
    graph[by_class["SVDQuantQuantizeModel"]]["inputs"] |= {"filename_prefix": prefix, "rank": 16, "overwrite": True}
    shown = {"class_type": "PreviewAny", "inputs": {"source": [by_class["SVDQuantQuantizeModel"], 2]}}
    return graph | {"report": shown}


def draw(name: str, patcher) -> torch.Tensor:
    """A few Euler steps with the family's own conditions."""
    family, sizes = FAMILIES[name], Sizes()
    sizes.generator.manual_seed(1)
    x, given = family.inputs(family.tiny_config, sizes)
    comfy.model_management.load_models_gpu([patcher])
    x, given = x.to(patcher.load_device), on_device(patcher.load_device, given)
    with torch.inference_mode():
        for sigma, following in pairwise(SIGMAS):
            denoised = patcher.model.apply_model(x, sizes.number(sigma).to(x.device), **given)
            x = denoised + (x - denoised) * (following / sigma)
    return x.cpu()


@pytest.mark.parametrize("name", NAMES)
def test_it_quantizes_and_draws(name, host, monkeypatch):
    make_cheap(monkeypatch)
    dense = load_dense(name)
    folder = host.model_folder("diffusion_models")
    tensors = {n: t.bfloat16().contiguous() for n, t in dense.model.diffusion_model.state_dict().items()}
    save_file(tensors, folder / f"tiny-{name}.safetensors", metadata=FAMILIES[name].metadata)
    try:
        with detected_as(FAMILIES[name]):
            shown = host.run(graph_for(f"tiny-{name}.safetensors", f"any-{name}"))
            model, status = host.call(
                "SVDQuantModelLoader", model_name=f"svdq-int4_r16-any-{name}.safetensors", compute="w4a8"
            )
    finally:
        (folder / f"tiny-{name}.safetensors").unlink()
    report = shown["report"]["text"][0]
    assert f"svdq-int4_r16-any-{name}.safetensors" in report and "relative output error" in report
    assert "int4" in status and model.svdquant_layers()
    picture, expected = draw(name, model), draw(name, dense)
    assert picture.isfinite().all() and relative_error(picture, expected) < 0.3
