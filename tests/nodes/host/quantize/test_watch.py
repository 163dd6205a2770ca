"""One forward in which Linears answer with noise: rows, inputs that are shared, what they come out of."""

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, linear, silu

from svdquant_pack.nodes.host.quantize.noise_conditions import WidthError
from svdquant_pack.nodes.host.quantize.watch import Watch, block_of

BLOCKS = {"blocks.0": "blocks", "blocks.1": "blocks"}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("a", "b", "c", "listen"):
            setattr(self, name, nn.Linear(8, 8, device="meta"))
        self.joined = nn.Linear(16, 8, device="meta")


class Network(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.conv = nn.Conv2d(3, 8, 3, padding=1, stride=2, device="meta")
        self.run = run

    def forward(self, x, prompt):
        for block in self.blocks:
            x = self.run(block, x, prompt)
        return x


def watch(run) -> Watch:
    network = Network(run)
    watched = Watch(network, BLOCKS)
    with torch.inference_mode(False), torch.no_grad(), watched:
        out = network(torch.randn(1, 5, 8), torch.randn(1, 3, 8))
    watched.close()
    assert out.shape[-1] == 8
    return watched


def tags(run, layer: str) -> list:
    return watch(run).seen[f"blocks.0.{layer}"].tags


def test_rows_and_calls():
    seen = watch(lambda block, x, p: block.a(block.a(x))).seen["blocks.1.a"]
    assert seen.calls == [5, 5]


def test_layers_that_read_one_tensor():
    def run(block, x, prompt):
        inner = x * 2
        return block.a(inner) + block.b(inner) + block.c(inner + 1)

    seen = watch(run).seen
    assert seen["blocks.0.b"].input_of == seen["blocks.0.a"].input_of == "blocks.0.a"
    assert seen["blocks.0.c"].input_of == "blocks.0.c"


def test_a_tensor_that_was_changed_in_between_is_another():
    def run(block, x, prompt):
        inner = x * 2
        out = block.a(inner)
        inner.add_(1)
        return out + block.b(inner)

    assert watch(run).seen["blocks.0.b"].input_of == "blocks.0.b"


def test_the_prompt_as_it_came():
    def run(block, x, prompt):
        return block.a(x) + block.listen(prompt).mean(dim=1, keepdim=True)

    seen = watch(run).seen
    assert all(seen[f"blocks.{i}.listen"].context for i in (0, 1))
    assert not any(seen[f"blocks.{i}.a"].context for i in (0, 1))


@pytest.mark.parametrize(
    ("prepare", "tag"),
    [
        (lambda x: gelu(x), "gelu"),
        (lambda x: gelu(x).transpose(1, 2).contiguous().transpose(1, 2), "gelu"),
        (lambda x: gelu(x) + 1, None),
        (lambda x: silu(x) * (x * 2), "gated"),
        (lambda x: x * 2, None),
    ],
    ids=["gelu", "moved", "shifted", "gated", "scaled"],
)
def test_what_an_input_comes_out_of(prepare, tag):
    assert tags(lambda block, x, p: block.a(prepare(x)), "a") == [tag]


def test_channels_side_by_side_are_told_apart():
    def run(block, x, prompt):
        return block.joined(torch.cat((x * 2, gelu(x)), dim=-1))

    assert tags(run, "joined") == [((None, 8), ("gelu", 8))]


def test_a_weight_that_is_read_past_its_layer():
    watched = watch(lambda block, x, p: block.a(x) + linear(x, block.b.weight))
    assert watched.bypassed == {"blocks.0.b", "blocks.1.b"}


def test_a_wrong_width_says_which_would_be_right():
    network = Network(lambda block, x, p: block.a(p))
    watched = Watch(network, BLOCKS)
    with watched, pytest.raises(WidthError, match=r"blocks\.0\.a takes 8 features and was given 61"):
        network(torch.randn(1, 5, 8), torch.randn(1, 3, 61))


def test_a_convolution_answers_with_its_shape():
    network = Network(lambda block, x, p: block.a(x))
    watched = Watch(network, BLOCKS)
    with watched:
        assert network.conv(torch.randn(2, 3, 9, 6)).shape == (2, 8, 5, 3)
        with pytest.raises(WidthError):
            network.conv(torch.randn(2, 4, 9, 6))
    watched.close()
    assert "forward" not in network.conv.__dict__


def test_attention_answers_with_its_shape():
    watched = Watch(Network(lambda block, x, p: x), {})
    joined = watched.attention(lambda: None, torch.zeros(2, 5, 32), torch.zeros(2, 3, 32), torch.zeros(2, 3, 32), 4)
    apart = torch.zeros(2, 4, 5, 8)
    assert joined.shape == (2, 5, 32)
    kept = watched.attention(lambda: None, apart, apart, apart, 4, skip_reshape=True, skip_output_reshape=True)
    assert kept.shape == (2, 4, 5, 8)
    assert watched.attention(lambda: None, apart, apart, apart, 4, skip_reshape=True).shape == (2, 5, 32)


def test_the_block_of_a_name():
    assert block_of("blocks.1.ff.0", BLOCKS) == "blocks.1" and block_of("blocks.10.ff", BLOCKS) == ""
