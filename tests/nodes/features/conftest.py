"""Fixtures of the feature tests: both models of the same weights, and the host's nodes. Imports no host at the top."""

import pytest


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
