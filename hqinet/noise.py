"""How noisy a CT slice is, measured on the slice itself, and noise made of another texture."""

import torch
from torch import Tensor
from torch.nn import functional as F

BODY_HU = -500.0
"""Above this a pixel is tissue. Air outside the patient and padding carry no usable noise."""
FLOOR_HU = 1.0
"""A noise level is never reported below this, for it divides."""
_SPACING = 2
_INTERLEAVED = 8
"""Pixels apart; the noise of a CT reconstruction is correlated over two or three."""
_SD_OF_MASK = 6.0
_MAD_TO_SD = 1.4826


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
    return (median * (_MAD_TO_SD / _SD_OF_MASK)).clamp_min(FLOOR_HU)


def whiten(noise: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Make a share of the variance of pure noise white, and say how its level changes.

    Pixels `_INTERLEAVED` apart, whose noise has nothing to do with each other, are brought side by
    side; the two parts are added as independent noise is. The variance over the image stays as it
    is, while what `noise_level` sees of it grows, since its mask sees the finest noise best. For
    patches, over which noise is about the same: from a whole slice, that of the body would be
    carried into the air.

    `noise`: (n, slices, rows, columns) in any unit; `share`: (n,) in [0, 1]. Returns noise of the
    same shape, and (n,) the factor on the level of the middle slice.
    """
    rows, columns = (_interleaved(size, noise.device) for size in noise.shape[2:])
    white = noise[:, :, rows][..., columns]
    part = share.view(-1, 1, 1, 1)
    mixed = (1 - part).sqrt() * noise + part.sqrt() * white
    middle = noise.shape[1] // 2
    before, after = (
        _laplacian_difference(x[:, middle], _SPACING).square().mean((1, 2)) for x in (noise, mixed)
    )
    return mixed, torch.where(before > 0, (after / before).sqrt(), 1.0)


def _interleaved(size: int, device: torch.device) -> Tensor:
    return torch.cat(
        [torch.arange(i, size, _INTERLEAVED, device=device) for i in range(_INTERLEAVED)]
    )


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
