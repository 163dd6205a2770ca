"""From a file to a step: a tiny model of each described family, in every format, the way that the loader node goes.

What is in the files is checked elsewhere against independent packers; here it is that the host's class gets all of it.
"""

from fnmatch import fnmatch

import comfy.sd
import comfy.utils
import pytest
import torch
from families.models import dense_of, detected_as, forward, random_part
from families.network import random_tensors
from families.registry import FAMILIES
from sampling import relative_error, rounding

from svdquant_pack.nodes.host.model.build import load_model, load_model_with_status
from svdquant_pack.svdq_core.checkpoint.formats import FORMATS, save_model
from svdquant_pack.svdq_core.errors import CheckpointError
from svdquant_pack.svdq_core.layer import QuantizedLayer
from svdquant_pack.svdq_core.models import ARCHITECTURES
from svdquant_pack.svdq_core.quantized_model import QuantizedModel

SAME = rounding(1e-5)
# nunchaku's files hold biases in bfloat16 with the shift of unsigned codes in them, and modulation with 1 added
LIMITS = {"nunchaku": rounding(2e-3), "comfy": SAME, "svdquant": SAME}
# tiny model -> the family's description
DESCRIBED = {
    "flux1": "flux",
    "flux2": "flux2",
    "chroma": "chroma",
    "zimage": "zimage",
    "krea2": "krea2",
    "qwen_image": "qwen_image",
    "minimax_h3": "minimax_h3",
    "sdxl": "sdxl",
    "pixart": "pixart",
}


def described_model(name: str) -> QuantizedModel:
    """The Linears that the description quantizes; those that share an input share smoothing and down projection."""
    family, architecture = FAMILIES[name], ARCHITECTURES[DESCRIBED[name]]
    model = QuantizedModel(architecture, plain=random_tensors(family.shapes(family.tiny_config)))
    for seed, host in enumerate(n.removesuffix(".weight") for n in list(model.plain) if n.endswith(".weight")):
        linear = architecture.find_linear(host)
        if linear is None or any(fnmatch(host, pattern) for pattern in architecture.kept):
            continue
        outputs, inputs = model.plain.pop(f"{host}.weight").shape
        bias = model.plain.pop(f"{host}.bias", None)
        shared, parts = architecture.input_name(host) or f"{host} {seed}", []
        for position, (rows, columns) in enumerate(linear.rectangles(outputs, inputs)):
            scheme = "awq" if linear.modulation_chunks else "int4"
            parts.append(random_part(scheme, rows, columns, f"{shared} {columns}", f"{host} {position}"))
        model.layers[host] = QuantizedLayer(
            inputs,
            outputs,
            tuple(parts),
            None if bias is None else bias.bfloat16(),
            input=architecture.input_name(host),
        )
    model.plain = {key: tensor.bfloat16() for key, tensor in model.plain.items()}
    return model


@pytest.fixture(scope="module", params=DESCRIBED)
def case(request, host):
    """Name, model, and what the host's dense model of the same weights gives."""
    name, model = request.param, described_model(request.param)
    with detected_as(FAMILIES[name]), torch.inference_mode():
        dense = comfy.sd.load_diffusion_model_state_dict(dense_of(model.layers, model.plain), {"dtype": torch.float32})
    return name, model, forward(name, dense)


@pytest.mark.parametrize("form", LIMITS)
def test_a_file_in_every_format(case, form, tmp_path):
    name, model, expected = case
    path = tmp_path / f"svdq-{name}.safetensors"
    save_model(path, model, FORMATS[form](model.architecture))
    with detected_as(FAMILIES[name]), torch.inference_mode():
        loaded = load_model(str(path), "w4a16")
    assert len(loaded.svdquant_layers()) == len(model.layers)
    assert expected.isfinite().all() and relative_error(forward(name, loaded), expected) < LIMITS[form]


def test_minimax_h3_of_two_files(host, tmp_path):
    """The quantized layers in one file, all else in the 16-bit model; without it, loading says which one is wanted."""
    model = described_model("minimax_h3")
    whole, first, second = (tmp_path / f"{n}.safetensors" for n in ("whole", "svdq-h3", "h3-bf16"))
    save_model(whole, model, FORMATS["nunchaku"](model.architecture))
    tensors = comfy.utils.load_torch_file(str(whole))
    metadata = {"config": "{}"}
    quantized = {
        n: t for n, t in tensors.items() if n.startswith(("transformer_blocks", "token_refiner.refiner_blocks"))
    }
    comfy.utils.save_torch_file(quantized, str(first), metadata=metadata)
    dense = dense_of(model.layers, model.plain)
    comfy.utils.save_torch_file({n: t.bfloat16() for n, t in dense.items()}, str(second))
    with pytest.raises(CheckpointError, match=r"Give as second file a 16-bit MiniMax H3 file"):
        load_model(str(first), "w4a16")
    with detected_as(FAMILIES["minimax_h3"]), torch.inference_mode():
        expected = forward("minimax_h3", load_model(str(whole), "w4a16"))
        loaded = load_model(str(first), "w4a16", str(second))
        assert relative_error(forward("minimax_h3", loaded), expected) < SAME
        make, given = loaded.cached_patcher_init  # as the host makes another copy
        assert len(make(*given, disable_dynamic=True).svdquant_layers()) == len(loaded.svdquant_layers())


def test_doubt_about_the_second_file_is_in_the_status(host, tmp_path):
    """Weights of a sibling: near enough to be the same model badly quantized."""
    model, draw = described_model("minimax_h3"), torch.Generator().manual_seed(1)
    whole, first, second = (tmp_path / f"{n}.safetensors" for n in ("whole", "svdq-h3", "h3-bf16"))
    save_model(whole, model, FORMATS["nunchaku"](model.architecture))
    tensors = comfy.utils.load_torch_file(str(whole))
    quantized = {n: t for n, t in tensors.items() if f"{n.rpartition('.')[0]}.qweight" in tensors}
    comfy.utils.save_torch_file(quantized, str(first), metadata={"config": "{}"})
    dense = dense_of(model.layers, model.plain)
    for host_name, layer in model.layers.items():
        step = layer.in_features**-0.5 / 5
        name = f"{host_name}.weight"
        dense[name] = dense[name] + 0.6 * step * torch.randn(dense[name].shape, generator=draw)
    comfy.utils.save_torch_file({n: t.bfloat16() for n, t in dense.items()}, str(second))
    with detected_as(FAMILIES["minimax_h3"]), torch.inference_mode():
        _, status = load_model_with_status(str(first), "w4a16", str(second))
    assert "they may be of two models that share all shapes" in status
