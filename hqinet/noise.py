"""How noisy a CT slice is, measured on the slice itself, and detail as of another kernel."""

import torch
from torch import Tensor
from torch.nn import functional as F

BODY_HU = -500.0
"""Above this a pixel is tissue. Air outside the patient and padding carry no usable noise."""
FLOOR_HU = 1.0
"""A noise level is never reported below this, for it divides."""
MAD_TO_SD = 1.4826
"""The SD of normal noise over its median absolute deviation."""
_SPACING = 2
_SD_OF_MASK = 6.0


def noise_level(hu: Tensor) -> Tensor:
    """Return the robust noise standard deviation of each slice, in HU.

    The median absolute response of the Laplacian difference mask of Immerkaer (1996),
    `[1 -2 1]^T [1 -2 1]`, over the body. Its taps lie two pixels apart, because filtered
    back-projection correlates the noise of neighbours. Structure adds a little; what counts is
    that the figure follows the noise from slice to slice and scanner to scanner.

    `hu`: (n, rows, columns), any real dtype, in HU; returns (n,) float32, at least `FLOOR_HU`.
    """
    padded = F.pad(hu.float()[:, None], (_SPACING,) * 4, mode="replicate")
    sparse = _every_second(padded)[:, 0]
    response = _laplacian_difference(sparse, spacing=1).abs().flatten(1)
    body = (sparse[:, 1:-1, 1:-1] > BODY_HU).flatten(1)
    judged = body | ~body.any(dim=1, keepdim=True)
    median = torch.where(judged, response, torch.nan).nanmedian(dim=1).values
    return (median * (MAD_TO_SD / _SD_OF_MASK)).clamp_min(FLOOR_HU)


def sharpened(images: Tensor, gain: Tensor) -> Tensor:
    """Multiply the finest detail, as another reconstruction kernel would: above 1 sharper.

    `x + (gain - 1) (x - G x)` with G a Gaussian of one pixel's SD over 5x5 pixels.
    `images`: (n, c, rows, columns); `gain`: (n,). Returns (n, c, rows - 4, columns - 4).
    """
    taps = torch.exp(-0.5 * torch.arange(-2.0, 3.0, device=images.device) ** 2)
    taps = taps / taps.sum()
    rows, columns = images.shape[2] - 4, images.shape[3] - 4
    blurred = sum(tap * images.narrow(2, i, rows) for i, tap in enumerate(taps))
    blurred = sum(tap * blurred.narrow(3, i, columns) for i, tap in enumerate(taps))
    inside = images[:, :, 2:-2, 2:-2]
    return torch.lerp(blurred, inside, gain.view(-1, 1, 1, 1))


def sharpening_gain(before: Tensor, after: Tensor) -> Tensor:
    """Return the factor on what `noise_level` sees of pure noise, (n, rows, columns) to (n,)."""
    one, other = (_laplacian_difference(x, _SPACING).square().mean((1, 2)) for x in (before, after))
    return torch.where(one > 0, (other / one).sqrt(), 1.0)


def _laplacian_difference(x: Tensor, spacing: int) -> Tensor:
    """`(n, rows, columns) -> (n, rows - 2 spacing, columns - 2 spacing)`."""
    return _second_difference(_second_difference(x, 1, spacing), 2, spacing)


def _second_difference(x: Tensor, dim: int, spacing: int) -> Tensor:
    size = x.shape[dim] - 2 * spacing
    before, centre, after = (x.narrow(dim, i * spacing, size) for i in range(3))
    return before - 2 * centre + after


def _every_second(x: Tensor) -> Tensor:
    """Return every second row and column: taps two pixels apart need no others.

    Pooling over one pixel, because torch.export cannot follow the strides of `x[..., ::2, ::2]`
    for both odd and even sizes.
    """
    return F.max_pool2d(x, kernel_size=1, stride=2)
