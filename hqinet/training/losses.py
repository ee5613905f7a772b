"""Losses between a restored and a full-dose slice."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from hqinet.training.recipe import SSIM_SIZE, LossRecipe

SSIM_SIGMA = 1.5
SSIM_K1 = 0.01
SSIM_K2 = 0.03


@lru_cache
def _gaussian(size: int, sigma: float) -> tuple[float, ...]:
    centre = (size - 1) / 2
    weights = torch.exp(-((torch.arange(size).double() - centre) ** 2) / (2 * sigma**2))
    return tuple((weights / weights.sum()).tolist())


def _blur(x: Tensor) -> Tensor:
    """Gaussian-weighted mean where the whole window lies inside the image."""
    weights = x.new_tensor(_gaussian(SSIM_SIZE, SSIM_SIGMA))
    return F.conv2d(F.conv2d(x, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))


def ssim(x: Tensor, y: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Return the structural similarity of each image pair (Wang et al. 2004).

    Gaussian window 11x11, sigma 1.5, K1 0.01, K2 0.03, population covariance, averaged over the
    pixels whose window lies inside the image: `skimage.metrics.structural_similarity` with
    `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`. Computed in float32 whatever
    the autocast state, for the variances are differences of nearly equal numbers.

    `x`, `y`: (n, 1, h, w) with h and w at least 11, else ValueError; returns (n,) float32.
    """
    if min(x.shape[-2:]) < SSIM_SIZE:
        message = f"SSIM needs at least {SSIM_SIZE}x{SSIM_SIZE} pixels, got {tuple(x.shape[-2:])}"
        raise ValueError(message)
    with torch.autocast(x.device.type, enabled=False):
        x, y = x.float(), y.float()
        n = x.shape[0]
        moments = _blur(torch.cat([x, y, x * x, y * y, x * y]))
        mean_x, mean_y, xx, yy, xy = moments.split(n)
        c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
        var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        structure = (2 * cov + c2) / (var_x + var_y + c2)
        return (luminance * structure).mean((1, 2, 3))


def restoration_loss(recipe: LossRecipe, restored: Tensor, full: Tensor, noise: Tensor) -> Tensor:
    """Return the loss of each sample; the paper's is `0.85 L1 + 0.15 (1 - SSIM)`.

    With `recipe.per_noise` the absolute and squared errors count in units of the low-dose
    slice's own noise, so that a quiet abdomen weighs as much as a loud chest. With
    `recipe.window` both images are clipped to that display window first, and errors count in
    window widths.

    `restored`, `full`: (n, 1, h, w) in [0, 1] (see `hqinet.intensity.normalise`); `noise`: (n,) in
    the same unit; returns (n,) float32.
    """
    restored, full = restored.float(), full.float()
    if recipe.window is not None:
        low, high = recipe.window_normalised()
        restored, full = (((x - low) / (high - low)).clamp(0, 1) for x in (restored, full))
        noise = noise / (high - low)
    error = restored - full
    if recipe.per_noise:
        error = error / noise.view(-1, 1, 1, 1)
    loss = restored.new_zeros(restored.shape[0])
    if recipe.l1:
        loss = loss + recipe.l1 * error.abs().mean((1, 2, 3))
    if recipe.mse:
        loss = loss + recipe.mse * error.square().mean((1, 2, 3))
    if recipe.ssim:
        loss = loss + recipe.ssim * (1 - ssim(restored, full))
    return loss
