"""benchmarks/soak.py: hundreds of different LoRAs, and a slope that shows what grows."""

import random
import sys

import pytest

from svdquant_pack import ROOT


@pytest.fixture
def soak(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import soak

    return soak


def test_loras_are_of_many_ranks(soak):
    loras = [soak.make_lora(number) for number in range(20)]
    ranks = {t.shape[0] for lora in loras for name, t in lora.items() if name.endswith("lora_A.weight")}
    assert ranks == set(range(4, 33, 4))
    assert all(
        lora[name].shape[0] == lora[name.replace("lora_A", "lora_B")].shape[1]
        for lora in loras
        for name in lora
        if name.endswith("lora_A.weight")
    )
    assert sum("lokr_w1" in " ".join(lora) for lora in loras) == 2


def test_prompts_use_all_of_them_and_many_sizes(soak):
    rng, names = random.Random(0), soak.lora_names(100)
    graphs = [soak.draw(rng, names) for _ in range(300)]
    used = {node["inputs"]["lora_name"] for graph in graphs for node in graph.values() if "lora_name" in node["inputs"]}
    assert len(used) > 90 and used <= set(names)
    assert len({(g["latent"]["inputs"]["width"], g["latent"]["inputs"]["height"]) for g in graphs}) > 60


def test_before_memory_is_looked_at_every_lora_was_used_by_both_loaders(soak):
    used = set()

    class Server:
        def prompt(self, graph):
            used.update(
                (node["class_type"], node["inputs"]["lora_name"], graph["model"]["inputs"]["model_name"])
                for node in graph.values()
                if "lora_name" in node["inputs"]
            )

    names = soak.lora_names(20)
    soak.warm_up(Server(), names)
    loaders = "SVDQuantLoraLoader", "LoraLoaderModelOnly"
    assert used == {(loader, name, model) for loader in loaders for name in names for model in soak.MODELS}


def test_the_slope_is_of_the_closest_line(soak):
    assert soak.slope([10, 20, 30, 40], [5, 7, 9, 11]) == pytest.approx(0.2)
    assert soak.slope([10, 20, 30], [5, 5, 5]) == soak.slope([10], [3]) == 0
