"""Every family's description is complete; what is missing from one is said in words."""

import sys
from dataclasses import replace

import pytest

from svdquant_pack.svdq_core import models
from svdquant_pack.svdq_core.models import FAMILIES, FLUX, Architecture, missing_parts

FLUX_BLOCK = FLUX.blocks[0]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_nothing_is_missing(family):
    assert missing_parts(family) == []


def test_names_are_unique():
    assert len({family.name for family in FAMILIES}) == len({family.title for family in FAMILIES}) == len(FAMILIES)


BROKEN = {
    "no marks": (replace(FLUX, source_marks=()), "no source_marks"),
    "no marks of ComfyUI": (replace(FLUX, host_marks=()), "no host_marks"),
    "no metadata": (replace(FLUX, metadata=None), "no nunchaku file can be written"),
    "no LoRA": (replace(FLUX, lora=None), "names of LoRAs are not described"),
    "nothing published": (replace(FLUX, published=()), "no file can be recommended"),
    "no blocks": (replace(FLUX, blocks=()), "nothing can be read or quantized"),
    "a block twice": (replace(FLUX, blocks=(FLUX_BLOCK, FLUX_BLOCK)), "two kinds of blocks with one name"),
    "an unknown module": (replace(FLUX, without_bias=frozenset({"nowhere"})), "nowhere has a property"),
    "half of native": (
        replace(FLUX, blocks=(replace(FLUX_BLOCK, native={"qkv_proj": FLUX_BLOCK.native["qkv_proj"]}),)),
        "norm1.linear has no name in deepcompressor's own output",
    ),
    "a piece alone": (
        replace(FLUX, blocks=(replace(FLUX_BLOCK, linears=(replace(FLUX_BLOCK.linears[1], piece=1),)),)),
        "is a piece: it needs one source, a split",
    ),
}


@pytest.mark.parametrize(("family", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_missing_is_said(family, message):
    assert any(message in text and text.startswith("FLUX.1 (flux): ") for text in missing_parts(family))


def test_a_stub_lacks_everything():
    assert len(missing_parts(Architecture("stub", "Stub", ()))) >= 6


def test_a_file_in_the_folder_is_a_family(tmp_path, monkeypatch):
    (tmp_path / "stub.py").write_text(
        'from .architecture import Architecture\nSTUB = Architecture("stub", "Stub", ())\n'
    )
    (tmp_path / "empty.py").write_text("")
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    assert models._family("stub").title == "Stub"
    with pytest.raises(ImportError, match="empty describes 0 families called 'empty', expected one"):
        models._family("empty")
    for name in ("stub", "empty"):
        monkeypatch.delitem(sys.modules, f"{models.__name__}.{name}")
        monkeypatch.delattr(models, name, raising=False)
