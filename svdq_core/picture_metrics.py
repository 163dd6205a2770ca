"""How far pictures are from their references: PSNR, SSIM, mean absolute difference, for each pair of a batch.

Pictures are (B, H, W, C) of any float dtype in 0...1; figures are (B,) float32. Equal pictures have PSNR infinity, SSIM
1 and difference 0.
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

# SSIM as in Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural
# Similarity", IEEE TIP 13(4), 2004: its window and its constants; taken for each channel and averaged over channels.
WINDOW, SIGMA = 11, 1.5
STABILIZERS = (0.01**2, 0.03**2)


def psnr(pictures: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB.

    Raises:
        ValueError: the shapes differ; so in all of this file.
    """
    _check(pictures, references)
    error = (pictures.float() - references.float()).square().mean(dim=(1, 2, 3))
    return -10 * error.log10()


def mean_absolute_difference(pictures: Tensor, references: Tensor) -> Tensor:
    """Mean of |picture - reference|, of a full range of 1."""
    _check(pictures, references)
    return (pictures.float() - references.float()).abs().mean(dim=(1, 2, 3))


def ssim(pictures: Tensor, references: Tensor) -> Tensor:
    """Mean structural similarity, at most 1, over all places where the whole window fits.

    Pictures with a side below 11 pixels get the largest odd window that fits.
    """
    _check(pictures, references)
    x, y = (p.float().movedim(-1, 1).flatten(0, 1)[:, None] for p in (pictures, references))
    window = min(WINDOW, *x.shape[-2:])
    weights = _gaussian(window - (window + 1) % 2).to(x.device)

    def blur(values: Tensor) -> Tensor:
        return conv2d(conv2d(values, weights[None, None, :, None]), weights[None, None, None, :])

    mean_x, mean_y = blur(x), blur(y)
    variance_x = blur(x * x) - mean_x.square()
    variance_y = blur(y * y) - mean_y.square()
    covariance = blur(x * y) - mean_x * mean_y
    light, contrast = STABILIZERS
    similarity = (2 * mean_x * mean_y + light) * (2 * covariance + contrast)
    similarity /= (mean_x.square() + mean_y.square() + light) * (variance_x + variance_y + contrast)
    return similarity.mean(dim=(1, 2, 3)).unflatten(0, (len(pictures), -1)).mean(dim=1)


def _gaussian(size: int) -> Tensor:
    distance = torch.arange(size) - (size - 1) / 2
    weights = torch.exp(-distance.square() / (2 * SIGMA**2))
    return weights / weights.sum()


def _check(pictures: Tensor, references: Tensor) -> None:
    if pictures.shape != references.shape or pictures.ndim != 4:
        raise ValueError(
            f"Cannot compare pictures of shape {tuple(pictures.shape)} with {tuple(references.shape)}; "
            "expected two equal shapes (B, H, W, C)."
        )
