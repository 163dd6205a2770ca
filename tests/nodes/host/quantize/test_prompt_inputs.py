"""What the layers of an encoder see: second moments of most prompts, rows of the others, a block at a time."""

import pytest
import torch
from encoder_models import ENCODERS, draw_file, tiny
from safetensors.torch import save_file

from svdquant_pack.nodes.host.quantize.encoder_source import linears_of, load_16_bit
from svdquant_pack.nodes.host.quantize.encoder_text import encode
from svdquant_pack.nodes.host.quantize.prompt_inputs import EVERY, PromptInputs

PROMPTS = tuple(f"ba ce {'di ' * n}fo" for n in range(1, 2 * EVERY + 1))


@pytest.fixture
def clip(host, tmp_path):
    encoder = ENCODERS["Qwen2.5-VL 3B"]
    with tiny(encoder):
        save_file(draw_file(encoder), tmp_path / "te.safetensors")
        yield load_16_bit(tmp_path / "te.safetensors")[0]


def test_moments_and_rows_come_from_different_prompts(clip):
    names = [name for name in linears_of(clip) if name.startswith("model.layers.1.")]
    assert len(names) == 7
    source = PromptInputs(clip, PROMPTS, dict.fromkeys(names, "model.layers.1"))
    found = source.of_block("model.layers.1")
    seen: list[torch.Tensor] = []
    name = "model.layers.1.mlp.down_proj"
    handle = linears_of(clip)[name].register_forward_pre_hook(lambda m, args: seen.append(args[0].flatten(0, -2)))
    for prompt in PROMPTS:
        encode(clip, prompt, padded=False)
    handle.remove()
    rows = [x / x.square().mean(dim=1, keepdim=True).sqrt() for x in seen]
    held_out = torch.cat([x for i, x in enumerate(rows) if i % EVERY == EVERY - 1])
    others = torch.cat([x for i, x in enumerate(rows) if i % EVERY != EVERY - 1])
    statistics = found[name]
    assert torch.allclose(statistics.tokens, held_out) and statistics.count == len(others)
    hessian, count = statistics.hessian()
    assert count == len(others) and torch.allclose(hessian, others.T @ others / len(others), atol=1e-4)
    assert torch.allclose(statistics.mean_square, others.square().mean(dim=0), atol=1e-4)
    assert not any(module._forward_pre_hooks for module in linears_of(clip).values())


def test_every_linear_of_the_file_is_found(clip):
    assert len(linears_of(clip)) == 21
    assert all(name.startswith("model.layers.") for name in linears_of(clip))
