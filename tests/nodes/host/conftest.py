"""Fixtures of the host seam's tests: the tiny FLUX as SVDQuant model, and the host's own dense one of the same weights.

Nothing of the host is imported at the top: pytest reads this file before the host is importable, or without one.
"""

import pytest
import torch


@pytest.fixture(autouse=True)
def inference_mode():
    """As the host runs nodes: parameters that were made in it cannot be moved to a card and used outside of it."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def path(host):
    from host_models import put_tiny

    folder = host.model_folder("diffusion_models")
    return folder / put_tiny(folder)


@pytest.fixture(scope="module")
def model(path):
    from svdquant_pack.nodes.host.model.build import load_model

    with torch.inference_mode():  # as nodes do
        return load_model(str(path), "w4a16")


@pytest.fixture(scope="module")
def plain(model):
    """The picture without a LoRA."""
    from sampling import sample_flux

    sample_flux(model)
    return sample_flux(model)


@pytest.fixture(scope="session")
def add(host):
    """add(model, tensors of a file, strength): a copy with the LoRA, as the stock loaders make it."""
    import comfy.sd

    def add_lora(model, lora: dict, strength: float = 1.0):
        return comfy.sd.load_lora_for_models(model, None, dict(lora), strength, 0)[0]

    return add_lora
