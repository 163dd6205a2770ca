"""How far a picture or a latent is from its reference."""

import math

import numpy as np
import torch
from torch import Tensor


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two (H, W, 3) uint8 images; infinite for equal ones."""
    _same_shape(image.shape, reference.shape)
    error = np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2)
    return math.inf if error == 0 else float(10 * np.log10(255**2 / error))


def relative_error(latent: Tensor, reference: Tensor) -> float:
    """Norm of the difference divided by the norm of the reference, dimensionless; any equal shapes."""
    _same_shape(latent.shape, reference.shape)
    reference = reference.double()
    return float((latent.double() - reference).norm() / reference.norm())


def is_identical(latent: Tensor, image: np.ndarray, other_latent: Tensor, other_image: np.ndarray) -> bool:
    """Whether two latents and their decoded images agree bit for bit."""
    return (
        latent.dtype == other_latent.dtype and torch.equal(latent, other_latent) and np.array_equal(image, other_image)
    )


def _same_shape(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if tuple(shape) != tuple(expected):
        raise ValueError(f"Cannot compare shape {tuple(shape)} with {tuple(expected)}.")
