"""Visual information fidelity in the pixel domain (Sheikh & Bovik 2006, `vifp_mscale`)."""

import torch
from torch import Tensor
from torch.nn import functional as F

SCALES = 4
SMALLEST = 41
"""Pixels a side that the coarsest scale needs."""
NOISE = 2.0
"""Variance of the visual system's own noise, for intensities of 0 to 255."""
_TINY = 1e-10


def visual_fidelity(image: Tensor, reference: Tensor) -> Tensor:
    """Return the share of the reference's information that the image holds: (n,) float64.

    `image`, `reference`: (n, rows, columns) as displayed, 0 to 255. 1 where both are equal, above
    for an image of more contrast. ValueError below 41 pixels a side, which the coarsest of the four
    scales needs; NaN for a reference without structure.
    """
    if min(image.shape[1:]) < SMALLEST:
        raise ValueError(f"images of 41x41 pixels or more, not {tuple(image.shape[1:])}")
    x, y = reference.double()[:, None], image.double()[:, None]
    seen = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    there = torch.zeros_like(seen)
    for scale in range(SCALES):
        size = 2 ** (SCALES - scale) + 1
        if scale:
            x, y = (_blur(z, size)[:, :, ::2, ::2] for z in (x, y))
        mean_x, mean_y = _blur(x, size), _blur(y, size)
        variance_x = (_blur(x * x, size) - mean_x**2).clamp_min(0)
        variance_y = (_blur(y * y, size) - mean_y**2).clamp_min(0)
        covariance = _blur(x * y, size) - mean_x * mean_y
        gain = covariance / (variance_x + _TINY)
        rest = variance_y - gain * covariance
        flat = variance_x < _TINY
        gain, rest = gain.masked_fill(flat, 0), torch.where(flat, variance_y, rest)
        variance_x = variance_x.masked_fill(flat, 0)
        nothing = variance_y < _TINY
        gain, rest = gain.masked_fill(nothing, 0), rest.masked_fill(nothing, 0)
        # An image that is the reference turned around holds nothing of it.
        rest = torch.where(gain < 0, variance_y, rest).clamp_min(_TINY)
        gain = gain.clamp_min(0)
        seen += torch.log10(1 + gain**2 * variance_x / (rest + NOISE)).sum((1, 2, 3))
        there += torch.log10(1 + variance_x / NOISE).sum((1, 2, 3))
    return torch.where(there > 0, seen / there, torch.nan)


def _blur(x: Tensor, size: int) -> Tensor:
    """Gaussian mean of SD size / 5 where the whole window lies inside."""
    axis = torch.arange(size, dtype=x.dtype, device=x.device) - (size - 1) / 2
    taps = torch.exp(-(axis**2) / (2 * (size / 5) ** 2))
    taps = taps / taps.sum()
    return F.conv2d(F.conv2d(x, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))
