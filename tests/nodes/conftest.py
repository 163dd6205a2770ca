"""The tiny FLUX as ComfyUI's own model, for the nodes that read one."""

import pytest


@pytest.fixture(scope="module")
def folder(host):
    return host.model_folder("diffusion_models")


@pytest.fixture(scope="module")
def dense(host, folder):
    from host_models import put_dense

    return host.call("UNETLoader", unet_name=put_dense(folder), weight_dtype="default")[0]
