"""Where the host runs models."""

import comfy.model_management
import torch


def torch_device() -> torch.device:
    """The device that the host computes on, its own command-line switches included."""
    return comfy.model_management.get_torch_device()
