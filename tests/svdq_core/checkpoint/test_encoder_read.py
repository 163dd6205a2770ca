"""Files of CLIPSave that hold the encoders of one CLIP are taken apart."""

import torch

from svdquant_pack.svdq_core.checkpoint.encoder_read import take_apart
from svdquant_pack.svdq_core.layer import QuantizedLayer
from svdquant_pack.svdq_core.models.others import generic_family
from svdquant_pack.svdq_core.quantized_model import QuantizedModel

LAYER = QuantizedLayer(64, 64, ())


def model(layers=(), plain=()):
    return QuantizedModel(generic_family("x"), dict.fromkeys(layers, LAYER), dict.fromkeys(plain, torch.zeros(1)))


def test_a_file_of_one_encoder_stays():
    one = model(["model.layers.0.mlp"], ["model.norm.weight", "spiece_model"])
    assert take_apart(one) == [one]


def test_two_encoders_and_what_belongs_to_none():
    saved = model(
        ["gemma.transformer.model.layers.0.mlp", "jina.transformer.model.encoder.layers.0.mlp"],
        ["gemma.transformer.model.norm.weight", "gemma.logit_scale", "jina_spiece_model", "projection.weight"],
    )
    gemma, jina, rest = take_apart(saved)
    assert list(gemma.layers) == ["model.layers.0.mlp"] and list(gemma.plain) == ["model.norm.weight", "logit_scale"]
    assert list(jina.layers) == ["model.encoder.layers.0.mlp"] and list(jina.plain) == ["spiece_model"]
    assert list(rest.plain) == ["projection.weight"] and not rest.layers


def test_one_tokenizer_belongs_to_the_first():
    saved = model(["mistral3_24b.transformer.model.layers.0.mlp"], ["tekken_model", "mistral3_24b.logit_scale"])
    (only,) = take_apart(saved)
    assert set(only.plain) == {"tekken_model", "logit_scale"}
