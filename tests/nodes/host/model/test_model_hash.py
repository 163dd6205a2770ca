"""Hashes of MODELs: of the weights whatever lies on them, of the patches whoever loaded them."""

import pytest
import torch
from host_models import put_dense, put_lora
from lora_files import diffusers_lora
from sampling import sample_flux

from svdquant_pack.nodes.host.model.model_hash import patches_hash, weights_hash


@pytest.fixture(scope="module")
def load(host):
    folder = host.model_folder("diffusion_models")

    def load_dense(precision: str = "int4"):
        return host.call("UNETLoader", unet_name=put_dense(folder, precision), weight_dtype="default")[0]

    return load_dense


@pytest.fixture(scope="module")
def with_lora(host):
    name = put_lora(host.model_folder("loras"))
    return lambda model, s: host.call("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=s)[0]


def test_weights_are_the_files_whatever_lies_on_them(load, with_lora):
    first, again, other = load(), load(), load("nvfp4")
    expected = weights_hash(first)
    assert weights_hash(again) == expected != weights_hash(other)
    patched = with_lora(first, 2.0)
    sample_flux(patched)  # the host has the LoRA in the weights now
    assert patched.backup and weights_hash(first) == weights_hash(patched) == expected


def test_patches_are_their_content_and_strength(load, with_lora, add):
    model, again = load(), load()
    assert patches_hash(model) == ""
    expected = patches_hash(with_lora(model, 1.0))
    assert expected and patches_hash(with_lora(again, 1.0)) == expected
    others = [with_lora(model, 0.5), with_lora(with_lora(model, 1.0), 1.0), add(model, diffusers_lora(5), 1.0)]
    assert len({expected, *map(patches_hash, others)}) == 4


def test_patches_of_any_kind(load, add):
    key = "diffusion_model.double_blocks.0.img_attn.proj.weight"
    size = load().model.diffusion_model.double_blocks[0].img_attn.proj.weight.shape
    hashes = set()
    for value in (("diff", (torch.ones(size),)), ("diff", (2 * torch.ones(size),)), ("set", (torch.ones(size),))):
        model = load().clone()
        model.add_patches({key: value})
        hashes.add(patches_hash(model))
    assert len(hashes) == 3
