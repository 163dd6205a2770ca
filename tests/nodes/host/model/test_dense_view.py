"""What other packs read of packed layers: dense shapes and values, from the state dict and from get_key_patches."""

import copy
import io

import comfy.hooks
import comfy.model_management
import pytest
import torch
from safetensors.torch import load, save
from sampling import flux_conditioning, relative_error, rounding, sample_flux

from svdquant_pack.nodes.host.model.dense_view import DenseView

ORDER = rounding(5e-6)
KEY = "diffusion_model.double_blocks.0.img_mlp.2"  # behind a GELU: its stored bias is not the true one


def test_the_state_dict_is_that_of_the_dense_model(model, dense):
    found, expected = model.model.state_dict(), dense.model.state_dict()
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].shape == tensor.shape, key
        assert relative_error(found[key].float().cpu(), tensor.float().cpu()) < rounding(5e-6) or tensor.norm() == 0, (
            key
        )
    assert isinstance(found[f"{KEY}.weight"], DenseView) and isinstance(found[f"{KEY}.bias"], DenseView)


def test_get_key_patches_shows_the_same(model, dense):
    expected = dense.get_key_patches("diffusion_model.")
    for key, (first, *_) in model.get_key_patches("diffusion_model.").items():
        tensor, convert = first
        assert tensor.shape == expected[key][0][0].shape, key
        assert relative_error(convert(tensor.float()).cpu(), expected[key][0][0].float().cpu()) < ORDER


def test_the_host_counts_the_bytes_that_there_are(model, dense):
    size = comfy.model_management.module_size(model.model)
    assert size == model.model_size() < dense.model_size() / 2


def test_looking_at_a_view_makes_nothing():
    def fail(_device):
        raise AssertionError("the values were worked out")

    view = DenseView((4, 6), torch.bfloat16, torch.device("cpu"), fail, 9)
    assert view.shape == (4, 6) and view.dtype == torch.bfloat16 and view.device.type == "cpu" and view.ndim == 2
    assert view.nbytes == 9 and view.numel() == 24 and view.element_size() == 2 and not view.requires_grad
    like = torch.empty_like(view), torch.zeros_like(view, dtype=torch.float32), torch.ones_like(view)
    assert [(t.shape, t.dtype, type(t)) for t in like] == [
        ((4, 6), dtype, torch.Tensor) for dtype in (torch.bfloat16, torch.float32, torch.bfloat16)
    ]
    assert view.detach() is view


def test_operations_see_the_values():
    values = torch.randn(4, 6)
    view = DenseView((4, 6), torch.bfloat16, torch.device("cpu"), lambda _device: values, 9)
    rounded = values.bfloat16()
    assert torch.equal(view * 2, rounded * 2) and torch.equal(view[1:3, 2], rounded[1:3, 2])
    assert torch.equal(view.T, rounded.T) and torch.equal(torch.cat([view, view]), torch.cat([rounded, rounded]))
    assert torch.equal(view.float(), values), "a copy keeps what the shown dtype would round"
    assert torch.equal(torch.empty(4, 6).copy_(view), values)
    assert torch.equal(view.clone(), rounded) and type(view.clone()) is torch.Tensor
    assert view.float().numpy().tolist() == values.tolist() and view.tolist() == rounded.tolist()
    assert torch.equal(copy.deepcopy(view), rounded)
    assert torch.equal(load(save({"x": view}))["x"], rounded)
    buffer = io.BytesIO()
    torch.save({"x": view}, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer)["x"], rounded)


def test_a_pack_that_scales_what_it_reads(model, dense, plain):
    """W * (s - 1) as a difference, of whole blocks: what block-scaling packs make of a state dict."""

    def scaled(target):
        state = target.model.state_dict()
        keys = [key for key in state if ".img_mlp." in key or ".linear2." in key]
        patched = target.clone()
        assert set(patched.add_patches({key: (state[key] * (1.2 - 1.0),) for key in keys}, 1.0)) == set(keys)
        return sample_flux(patched)

    expected = scaled(dense)
    assert relative_error(expected, plain) > 0.02
    assert relative_error(scaled(model), expected) < 2 * ORDER
    assert torch.equal(sample_flux(model), plain)


@pytest.mark.parametrize("onto_ours", [True, False])
def test_an_svdquant_model_as_lora(host, model, dense, plain, onto_ours):
    """The hook reads the other model's state dict."""
    from host_models import put_dense, put_tiny

    folder = host.model_folder("diffusion_models")
    ours = host.call("SVDQuantModelLoader", model_name=put_tiny(folder, "nvfp4"), compute="w4a16")[0]
    theirs = host.call("UNETLoader", unet_name=put_dense(folder, "nvfp4"), weight_dtype="default")[0]

    def picture(target, source):
        weights = comfy.hooks.get_patch_weights_from_model(source)
        hooks = comfy.hooks.create_hook_model_as_lora(weights, None, 0.3, 0.0)
        positive = comfy.hooks.set_hooks_for_conditioning(flux_conditioning(), hooks)
        return sample_flux(target.clone(), conditioning=positive)

    if dense.is_dynamic():
        pytest.skip("the host's own model fails with hooks on weights of two dtypes")
    expected = picture(dense, theirs)
    assert relative_error(expected, plain) > 0.02
    assert relative_error(picture(model if onto_ours else dense, ours), expected) < ORDER
    assert torch.equal(sample_flux(model), plain)
