"""A 16-bit FLUX of a few layers as a file: what quantizing starts from."""

from pathlib import Path

import torch
from dense_compare import dense_model
from safetensors.torch import save_file
from tiny_files import DATA


def write_dense(path: Path) -> Path:
    """The tiny FLUX in 16 bits, with the prefix of a whole checkpoint and another model beside it."""
    tensors = dense_model(DATA / "flux_tiny_int4_r32.safetensors")
    stored = {f"model.diffusion_model.{name}": tensor.bfloat16().contiguous() for name, tensor in tensors.items()}
    save_file(stored | {"vae.decoder.weight": torch.zeros(3)}, path)
    return path
