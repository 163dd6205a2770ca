"""What layers see when ComfyUI's own model runs on noise: what hooks on the model see, block by block."""

import pytest
import torch
from families.models import load_dense
from host_models import put_dense, put_pixart
from known_inputs import FluxInputs, PixArtInputs
from torch import nn

from svdquant_pack.nodes.host.model.dense_weights import DenseWeights
from svdquant_pack.nodes.host.quantize import block_inputs
from svdquant_pack.nodes.host.quantize.block_inputs import NoiseInputs
from svdquant_pack.nodes.host.quantize.plan_patcher import plan_patcher
from svdquant_pack.svdq_core.errors import SVDQuantError

CPU = torch.device("cpu")
CONDITIONED = ("mod.lin", "modulation.lin")  # before, these saw many more conditions than there were images


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


def noise_inputs(patcher) -> NoiseInputs:
    found = plan_patcher(patcher)
    assert found.request is not None
    return NoiseInputs(patcher.model, found.request, found.blocks, weights=DenseWeights(patcher), seed=0, device=CPU)


@pytest.mark.parametrize(
    ("put", "reference", "skipped"),
    [(put_dense, FluxInputs, CONDITIONED), (put_pixart, PixArtInputs, ("kv_linear",))],
    ids=["flux", "pixart"],
)
def test_as_from_the_blocks_written_down_by_hand(host, put, reference, skipped):
    """The same layers, and channels of the same size, within what other noise changes."""
    name = put(host.model_folder("diffusion_models"))
    (patcher,) = host.call("UNETLoader", unet_name=name, weight_dtype="default")
    weights, plan = DenseWeights(patcher), plan_patcher(patcher).plan
    known, other = (reference(weights, weights.names, seed, CPU) for seed in (0, 1))
    traced = noise_inputs(patcher)
    compared = 0
    for block in known.order:
        ours, theirs, again = traced.of_block(block), known.of_block(block), other.of_block(block)
        assert set(theirs) == {layer.name for layer in plan if layer.block == block} <= set(ours)
        for layer in theirs:
            if layer.endswith(skipped):
                continue
            size, found, noise = (s[layer].mean_square.sqrt() for s in (theirs, ours, again))
            apart = float((found - size).norm() / size.norm())
            assert apart < 0.05 + 3 * float((noise - size).norm() / size.norm()), layer
            compared += 1
    traced.close()
    assert compared >= 5


def test_a_block_is_seen_as_hooks_see_it(host, monkeypatch):
    """Every input, token for token, as ComfyUI's own layers get it in the same forward."""
    for name, value in (("PICTURES", 2), ("PICTURE_SIDE", 16), ("TEXT_TOKENS", 16)):
        monkeypatch.setattr(block_inputs, name, value)
    patcher = load_dense("zimage")
    inputs, found_plan = noise_inputs(patcher), plan_patcher(patcher)
    found = {n: s for block in found_plan.plan.blocks for n, s in inputs.of_block(block).items()}
    seen: dict[str, list] = {}
    original = NoiseInputs._linear

    def remembering(self, name):
        forward = original(self, name)

        def remember(x, *args):
            seen.setdefault(name, []).append(x.reshape(-1, x.shape[-1]).clone())
            return forward(x, *args)

        return remember

    monkeypatch.setattr(NoiseInputs, "_linear", remembering)
    again = noise_inputs(patcher)
    for block in found_plan.plan.blocks:
        again.of_block(block)
    again.close()
    assert set(found_plan.plan.layers) <= set(found)
    for name, statistics in found.items():
        assert torch.equal(statistics.tokens, torch.cat(seen[name])), name


def test_blocks_may_be_asked_for_in_any_order(host, monkeypatch):
    for name, value in (("PICTURES", 2), ("PICTURE_SIDE", 8), ("TEXT_TOKENS", 8)):
        monkeypatch.setattr(block_inputs, name, value)
    inputs = noise_inputs(load_dense("flux1"))
    blocks = list(inputs.blocks)
    forward = {block: inputs.of_block(block) for block in blocks}
    for block in reversed(blocks):
        for name, statistics in inputs.of_block(block).items():
            assert torch.equal(statistics.tokens, forward[block][name].tokens), name
    inputs.close()


def test_rows_are_bounded(host, monkeypatch):
    for name, value in (("PICTURES", 2), ("MOST_ROWS", 100)):
        monkeypatch.setattr(block_inputs, name, value)
    inputs = noise_inputs(load_dense("flux1"))
    found = inputs.of_block(next(iter(inputs.blocks)))
    inputs.close()
    assert max(statistics.count for statistics in found.values()) == 100


def test_experts_that_saw_hardly_a_row_get_those_of_the_others(host, monkeypatch):
    for name, value in (("PICTURES", 2), ("PICTURE_SIDE", 16), ("TEXT_TOKENS", 8), ("FEW_ROWS", 10**6)):
        monkeypatch.setattr(block_inputs, name, value)
    inputs = noise_inputs(load_dense("hidream"))
    block = next(iter(inputs.blocks))
    found = inputs.of_block(block)
    inputs.close()
    experts = [s for name, s in found.items() if ".experts." in name and name.endswith("w1")]
    assert len(experts) == 4 and len({s.count for s in experts}) == 1
    assert experts[0].count >= 2 * 64  # each of the tokens of the two pictures, to two experts


def test_a_model_that_cannot_be_run_is_refused(host, monkeypatch):
    patcher = load_dense("flux1")
    inputs = noise_inputs(patcher)
    monkeypatch.setattr(type(patcher.model), "apply_model", lambda *args, **named: 1 / 0)
    with pytest.raises(SVDQuantError, match=r"cannot be run on noise \(division by zero\)"):
        inputs.of_block(next(iter(inputs.blocks)))
    assert isinstance(patcher.model.diffusion_model, nn.Module)
