"""A 16-bit FLUX of a few layers as a file: what quantizing starts from."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_files import DATA

from svdquant_pack.svdq_core.apply_layer import dense_bias, dense_weight
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint


def write_dense(path: Path) -> Path:
    """The tiny FLUX in 16 bits, with the prefix of a whole checkpoint and another model beside it."""
    model = read_checkpoint(Checkpoint(DATA / "flux_tiny_int4_r32.safetensors"))
    tensors = dict(model.plain)
    for name, layer in model.layers.items():
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = dense_weight(layer), dense_bias(layer)
    stored = {f"model.diffusion_model.{name}": tensor.bfloat16().contiguous() for name, tensor in tensors.items()}
    save_file(stored | {"vae.decoder.weight": torch.zeros(3)}, path)
    return path
