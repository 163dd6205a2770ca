"""How much of the GPU's memory a MODEL will take, in words."""

import comfy.model_management
from comfy.model_patcher import ModelPatcher

GIB = 2**30
EXAMPLE_SIZE = 1024  # pixels; what a step of a picture of this size takes is ComfyUI's own estimate


def memory_line(patcher: ModelPatcher) -> str:
    """What the weights and a step of one 1024 x 1024 picture take, and whether the GPU has it."""
    weights = patcher.model_size()
    device, words = patcher.load_device, f"{weights / GIB:.2f} GiB of weights"
    if device.type == "cpu":
        return f"{words}; no GPU: it runs on the CPU"
    step = _step_bytes(patcher)
    needed = weights + step
    if step:
        words += f", about {needed / GIB:.1f} GiB while it draws {EXAMPLE_SIZE} x {EXAMPLE_SIZE}"
    total = comfy.model_management.get_total_memory(device)
    if needed <= total:
        return f"{words}; fits into the GPU's {total / GIB:.1f} GiB"
    return f"{words}; the GPU has {total / GIB:.1f} GiB, so ComfyUI keeps a part in main memory, which is slower"


def _step_bytes(patcher: ModelPatcher) -> int:
    """ComfyUI's estimate for a step, 0 where the model makes no single pictures."""
    latent = patcher.model.latent_format
    if getattr(latent, "latent_dimensions", 2) != 2:
        return 0
    side = EXAMPLE_SIZE // getattr(latent, "spacial_downscale_ratio", 8)
    return int(patcher.model.memory_required([1, latent.latent_channels, side, side]))
