"""Small graphs for PixArt: conditioning without a text encoder, one step, and a LoRA."""

import torch
from feature_graphs import drawn

LAYERS = {
    "transformer_blocks.0.attn1.to_q": (1152, 1152),
    "transformer_blocks.0.attn1.to_v": (1152, 1152),
    "transformer_blocks.0.attn2.to_q": (1152, 1152),
    "transformer_blocks.0.attn2.to_k": (1152, 1152),  # not quantized
    "transformer_blocks.0.attn2.to_out.0": (1152, 1152),
    "transformer_blocks.0.ff.net.0.proj": (4608, 1152),
    "transformer_blocks.0.ff.net.2": (1152, 4608),
}


def prompt(seed: int) -> list:
    return [[torch.randn(1, 8, 4096, generator=torch.Generator().manual_seed(seed)), {}]]


def empty(height: int = 64, width: int = 64, batch: int = 1) -> dict:
    return {"samples": torch.zeros(batch, 4, height, width)}


def sample(g, model, positive=None, negative=None, *, latent=None, cfg=1.0, steps=1, **settings):
    return g.sample(
        model, positive or prompt(1), negative or prompt(1), latent or empty(), cfg=cfg, steps=steps, **settings
    )


def lora(prefix: str = "transformer.", seed: int = 0) -> dict:
    """Tensors of a LoRA of rank 4."""
    file = {}
    for i, (name, (outputs, inputs)) in enumerate(LAYERS.items(), start=100 * seed):
        file[f"{prefix}{name}.lora_A.weight"] = drawn(4, inputs, seed=i) * 0.05
        file[f"{prefix}{name}.lora_B.weight"] = drawn(outputs, 4, seed=i + 50) * 0.3
    return file
