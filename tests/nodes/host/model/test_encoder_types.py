"""ComfyUI's types of text encoders: all of its loaders', and which files each takes."""

import comfy.sd

from svdquant_pack.nodes.host.model.encoder_types import TYPES, clip_type, encoder_type, type_names


def stock(host, *loaders):
    found = [host.nodes.NODE_CLASS_MAPPINGS[name].INPUT_TYPES()["required"]["type"][0] for name in loaders]
    return {kind for kinds in found for kind in kinds}


def test_all_types_of_the_stock_loaders(host):
    assert set(type_names()) == stock(host, "CLIPLoader", "DualCLIPLoader") and type_names()[0] == "flux"
    assert set(TYPES) == set(type_names())


def test_numbers_of_files_are_those_of_the_stock_loaders(host):
    one, two = stock(host, "CLIPLoader"), stock(host, "DualCLIPLoader")
    for name, kind in TYPES.items():
        assert (kind.least == 0) == (name in one), name
        assert (kind.most > 0) == (name in two), name
        assert bool(kind.others) == (kind.most > 0)


def test_a_type_of_a_newer_comfyui(host, monkeypatch):
    loader = host.nodes.NODE_CLASS_MAPPINGS["CLIPLoader"]
    inputs = loader.INPUT_TYPES()
    inputs["required"]["type"][0].append("tomorrow")
    monkeypatch.setattr(loader, "INPUT_TYPES", classmethod(lambda cls: inputs))
    assert "tomorrow" in type_names() and encoder_type("tomorrow").most == 2
    assert clip_type("tomorrow") is comfy.sd.CLIPType.STABLE_DIFFUSION and clip_type("wan") is comfy.sd.CLIPType.WAN
