"""Model files for host tests, made from what is in tests/data, in the host's model folders."""

import shutil
from pathlib import Path

import torch
from dense_compare import dense_model
from safetensors.torch import save_file
from tiny_files import DATA


def put_tiny(folder: Path, precision: str = "int4") -> str:
    """The tiny nunchaku file as diffusion model; returns its name in the list."""
    name = f"svdq-{precision}-tiny.safetensors"
    if not (folder / name).exists():
        shutil.copy(DATA / f"flux_tiny_{precision}_r32.safetensors", folder / name)
    return name


def put_dense(folder: Path, precision: str = "int4", dtype: torch.dtype = torch.float32) -> str:
    """The dense equivalent of the tiny file under the host's names; returns its name in the list."""
    name = f"dense-{precision}-{str(dtype).removeprefix('torch.')}.safetensors"
    if not (folder / name).exists():
        tensors = dense_model(DATA / f"flux_tiny_{precision}_r32.safetensors")
        save_file({key: tensor.to(dtype).contiguous() for key, tensor in tensors.items()}, folder / name)
    return name


def put_lora(folder: Path) -> str:
    """A diffusers LoRA of rank 4 on every kind of layer; returns its name in the list."""
    shutil.copy(DATA / "lora_diffusers_r4.safetensors", folder / "tiny-lora.safetensors")
    return "tiny-lora.safetensors"


def put_pixart(folder: Path) -> str:
    """A PixArt-Sigma of one block with seeded random weights (73 MiB); returns its name in the list."""
    import comfy.ldm.pixart.pixartms
    import comfy.ops

    name = "pixart-random.safetensors"
    if not (folder / name).exists():
        model = comfy.ldm.pixart.pixartms.PixArtMS(
            input_size=128,
            in_channels=4,
            hidden_size=1152,
            depth=1,
            num_heads=16,
            model_max_length=300,
            micro_condition=False,
            pe_interpolation=2,
            dtype=torch.float32,
            operations=comfy.ops.disable_weight_init,
        )
        g = torch.Generator().manual_seed(0)
        tensors = {
            key: (torch.randn(t.shape, generator=g) * (t.shape[-1] ** -0.5 if t.ndim > 1 else 0.02)).bfloat16()
            for key, t in model.state_dict().items()
        }
        tensors["pos_embed"] = torch.zeros(1, 64 * 64, 1, dtype=torch.bfloat16)  # its length sets the model's scale
        save_file(tensors, folder / name)
    return name
