"""Sizes that the notes of workflows give are those that the environment check computes."""

import re

import pytest
from workflow_files import files
from workflow_files.graph import ModelFile

from svdquant_pack.svdq_core.models import FAMILIES
from svdquant_pack.svdq_core.published_files import file_bytes

MODELS = {model.name: (family, model) for family in FAMILIES for model in family.published}
QUANTIZED = {
    file.name: (file.gib, match)
    for file in vars(files).values()
    if isinstance(file, ModelFile)
    and file.gib is not None
    and (match := re.fullmatch(r"svdq-(int4|fp4)_r(\d+)-(.+)\.safetensors", file.name))
    and match[3] in MODELS
}


def test_there_are_some():
    assert len(QUANTIZED) >= 4


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_size_is_the_one_of_its_layers(name):
    said, match = QUANTIZED[name]
    nbytes = file_bytes(*MODELS[match[3]], "nvfp4" if match[1] == "fp4" else match[1], int(match[2]))
    assert nbytes is not None and said == pytest.approx(nbytes / 1e9, abs=0.06)
