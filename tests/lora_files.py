"""LoRAs for the tiny FLUX of tests/data, made here."""

import torch
from torch import Tensor

HIDDEN, MLP = 256, 1024

# diffusers layer -> (outputs, inputs); the last one is not quantized
DIFFUSERS_LAYERS = {
    "transformer_blocks.0.attn.to_q": (HIDDEN, HIDDEN),
    "transformer_blocks.0.attn.to_v": (HIDDEN, HIDDEN),
    "transformer_blocks.0.attn.add_k_proj": (HIDDEN, HIDDEN),
    "transformer_blocks.0.ff.net.0.proj": (MLP, HIDDEN),
    "transformer_blocks.0.ff.net.2": (HIDDEN, MLP),
    "transformer_blocks.0.norm1.linear": (6 * HIDDEN, HIDDEN),
    "single_transformer_blocks.0.attn.to_k": (HIDDEN, HIDDEN),
    "single_transformer_blocks.0.proj_mlp": (MLP, HIDDEN),
    "single_transformer_blocks.0.proj_out": (HIDDEN, HIDDEN + MLP),
    "proj_out": (64, HIDDEN),
}


def diffusers_lora(seed: int, rank: int = 4, scale: float = 0.2) -> dict[str, Tensor]:
    """Split q, k, v, modulation, fused linear1 and linear2, an unquantized layer; alpha is half the rank."""
    g = torch.Generator().manual_seed(seed)
    lora = {}
    for name, (outputs, inputs) in DIFFUSERS_LAYERS.items():
        lora[f"transformer.{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=g) * scale
        lora[f"transformer.{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=g) * scale
        lora[f"transformer.{name}.alpha"] = torch.tensor(rank / 2)
    return lora
