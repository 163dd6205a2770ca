"""Files as ComfyUI's own save nodes write them of an SVDQuant MODEL."""

import torch
from checkpoint_files import TINY, write_tensors

from svdquant_pack.svdq_core.blob import to_blob
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint


def packed_tensors(path=TINY["int4"]):
    """What the host's state dict holds of a model."""
    model = read_checkpoint(Checkpoint(path))
    tensors = {name: tensor.clone() for name, tensor in model.plain.items()}
    for name, layer in model.layers.items():
        blob, layout = to_blob(layer)
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = blob, layer.bias.clone()
        tensors[f"{name}.svdq_layout"] = as_bytes(layout.to_json())
    return tensors, model


def as_bytes(text):
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def write_packed(path, source=TINY["int4"]):
    """The file that ModelSave writes of a model; return the path."""
    return write_tensors(path, {f"diffusion_model.{n}": t for n, t in packed_tensors(source)[0].items()})
