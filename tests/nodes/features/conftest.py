"""Fixtures of the feature tests: both models of the same weights, and the host's nodes. Imports no host at the top."""

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture(scope="session")
def graphs(host):
    from feature_graphs import Graphs

    return Graphs(host)


@pytest.fixture(scope="session")
def ours(host):
    """The tiny FLUX as SVDQuant model; 16-bit activations, so that what differs is a fault and not quantization."""
    from host_models import put_tiny

    name = put_tiny(host.model_folder("diffusion_models"))
    return host.call("SVDQuantModelLoader", model_name=name, compute="w4a16")[0]


@pytest.fixture(scope="session")
def dense(host):
    """The host's own model of the same weights."""
    from host_models import put_dense

    name = put_dense(host.model_folder("diffusion_models"))
    return host.call("UNETLoader", unet_name=name, weight_dtype="default")[0]


@pytest.fixture(scope="session")
def pixart(host):
    """An SVDQuant PixArt, made by the node from random weights."""
    from host_models import put_pixart

    (dense,) = host.call(
        "UNETLoader", unet_name=put_pixart(host.model_folder("diffusion_models")), weight_dtype="default"
    )
    settings = {"precision": "int4", "activations": "w4a8", "rank": 16, "method": "fast", "seed": 0, "overwrite": True}
    _, path, *_ = host.call("SVDQuantQuantizeModel", model=dense, filename_prefix="pixart-features", **settings)
    name = path.rpartition("/")[2].rpartition("\\")[2]
    return host.call("SVDQuantModelLoader", model_name=name, compute="w4a16")[0]


@pytest.fixture(scope="session")
def twin(host, pixart):
    """The host's own model of exactly the weights that the SVDQuant one stands for."""
    from svdquant_pack.nodes.host.lora.bake import patched_weight
    from svdquant_pack.svdq_core.apply_layer import dense_bias, dense_weight

    tensors = {}
    layers = {
        key.removeprefix("diffusion_model.").removesuffix(".weight"): m for key, m in pixart.svdquant_layers().items()
    }
    for name, module in layers.items():
        layer = module.layer_on(torch.device("cpu"))
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = dense_weight(layer), dense_bias(layer)
    for name in pixart.model.diffusion_model.state_dict():
        tensors.setdefault(name, patched_weight(pixart, f"diffusion_model.{name}").float())
    tensors["pos_embed"] = torch.zeros(1, 64 * 64, 1)  # its length sets the model's scale
    save_file(
        {k: t.float().contiguous() for k, t in tensors.items()},
        host.model_folder("diffusion_models") / "twin.safetensors",
    )
    return host.call("UNETLoader", unet_name="twin.safetensors", weight_dtype="default")[0]
