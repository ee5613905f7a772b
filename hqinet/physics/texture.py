"""The texture of an image's noise, and the reconstruction kernel that gives it.

White noise of projections that is filtered with the ramp times a kernel's MTF and back-projected
has the radial spectrum `f MTF(f)^2` (Riederer et al. 1978, Phys Med Biol 23): where no kernel is
known, the spectrum of a series' own noise tells its MTF.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hqinet.errors import HqinetError

_REGION = 32
_REGIONS = 400
"""Smoothest regions of a series that its noise spectrum is taken from, at most."""
_SMOOTH_SHARE = 0.3
"""Of the regions inside the body, those of least variance: the others hold structure."""
_BODY_HU = -200.0
_SMALLEST_POWER = 1e-4
"""Of the highest: no spectrum is taken to be zero anywhere."""
_FIRST_RING = 2
"""Slopes are taken off, and anatomy changes: rings below say nothing of the noise."""
_LAST_UNSMOOTHED = 4
"""Up to this ring, an eighth of a cycle a pixel, kernels hardly smooth: there the MTF is 1."""


class TextureError(HqinetError):
    """Noise cannot be told from a series; the message is one line."""


@dataclass(frozen=True)
class Kernel:
    """A reconstruction kernel.

    Attributes:
        mtf: at 0, `step`, 2 `step`, ... cycles/mm; 1 at low frequencies. Constant beyond the last.
        step: cycles/mm.
    """

    mtf: tuple[float, ...]
    step: float

    def at(self, frequency: Tensor) -> Tensor:
        """Return the MTF at frequencies (any shape) in cycles/mm."""
        mtf = torch.tensor(self.mtf, device=frequency.device)
        place = (frequency / self.step).clamp(0, len(mtf) - 1)
        before = place.floor().long().clamp(max=len(mtf) - 2)
        return torch.lerp(mtf[before], mtf[before + 1], place - before)


def series_kernel(images: Tensor, pixel: float) -> Kernel:
    """Estimate the kernel of a series from differences of neighbouring slices.

    Anatomy that changes from slice to slice remains in the lowest frequencies of the smoothest
    regions, so that the median over regions is taken. A series of one slice: of the slice itself.
    `images`: (slices, rows, columns), HU; `pixel`: mm. Raises TextureError where no region lies in
    the body.
    """
    images = images.float()
    alone = len(images) == 1
    noise = images if alone else images.diff(dim=0) / math.sqrt(2)
    bodies = images if alone else torch.minimum(images[:-1], images[1:])
    return kernel_of(noise, bodies > _BODY_HU, pixel)


def kernel_of(noise: Tensor, body: Tensor, pixel: float) -> Kernel:
    """Return the kernel that makes such noise of white projections.

    `noise`: (n, rows, columns), any unit; `body`: where it counts, of the same shape; `pixel`: mm.
    Raises TextureError where no region of 32x32 pixels lies in the body.
    """
    power = _radial(_spectrum(noise, body))
    frequency = torch.arange(len(power), device=power.device) / _REGION
    mtf = (power / frequency.clamp_min(_FIRST_RING / _REGION)).sqrt()
    mtf[:_FIRST_RING] = mtf[_FIRST_RING]
    mtf = mtf / mtf[_FIRST_RING : _LAST_UNSMOOTHED + 1].mean()
    return Kernel(tuple(mtf.tolist()), 1 / (_REGION * pixel))


def mean_kernel(kernels: Sequence[Kernel]) -> Kernel:
    """Return the mean of kernels that were estimated one by one, at the finest of their steps."""
    step = min(kernel.step for kernel in kernels)
    reach = min(kernel.step * (len(kernel.mtf) - 1) for kernel in kernels)
    frequency = torch.arange(int(reach / step + 1e-6) + 1) * step
    mean = torch.stack([kernel.at(frequency) for kernel in kernels]).mean(0)
    return Kernel(tuple(mean.tolist()), step)


def regions_inside(body: Tensor) -> Tensor:
    """Which half-overlapping regions of a slice (rows, columns) lie in the body: (a, b) bool."""
    return regions(body).flatten(-2).float().mean(-1) > 0.98


def regions(x: Tensor) -> Tensor:
    """(rows, columns) to half-overlapping square regions (a, b, side, side)."""
    if min(x.shape) < _REGION:
        return x.new_zeros(0, 0, _REGION, _REGION)
    return x.unfold(0, _REGION, _REGION // 2).unfold(1, _REGION, _REGION // 2)


def _spectrum(noise: Tensor, body: Tensor) -> Tensor:
    """Median periodogram (side, side) of the smoothest regions."""
    found = [
        _without_slope(regions(one)[regions_inside(inside)])
        for one, inside in zip(noise, body, strict=True)
    ]
    every = torch.cat(found)
    if len(every) == 0:
        raise TextureError("no region of 32x32 pixels lies in the body: no noise spectrum")
    variance = every.square().mean((1, 2))
    count = max(1, min(_REGIONS, int(len(every) * _SMOOTH_SHARE)))
    chosen = every[variance.argsort()[:count]]
    chosen = chosen / chosen.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-6)
    taper = torch.hann_window(_REGION, device=noise.device)
    return torch.fft.fft2(chosen * taper * taper[:, None]).abs().square().median(0).values


def _radial(power: Tensor) -> Tensor:
    """Mean over rings of a (n, n) spectrum, smoothed over three rings: (n // 2 + 1,)."""
    axis = torch.fft.fftfreq(len(power), device=power.device) * len(power)
    ring = torch.hypot(axis[:, None], axis).round().long().clamp(max=len(power) // 2).flatten()
    total = torch.zeros(len(power) // 2 + 1, device=power.device)
    mean = total.index_add(0, ring, power.flatten()) / torch.bincount(ring)
    mean[:_FIRST_RING] = mean[_FIRST_RING] * 0.5
    padded = F.pad(mean[None, None], (1, 1), mode="replicate")[0, 0]
    smooth = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
    return (smooth / smooth.max()).clamp_min(_SMALLEST_POWER)


def _without_slope(x: Tensor) -> Tensor:
    """Take the least-squares plane off each region (n, side, side)."""
    axis = torch.arange(_REGION, device=x.device) - (_REGION - 1) / 2
    power = axis.square().sum() * _REGION
    x = x - x.mean((1, 2), keepdim=True)
    along = (x * axis).sum((1, 2), keepdim=True) / power
    across = (x * axis[:, None]).sum((1, 2), keepdim=True) / power
    return x - along * axis - across * axis[:, None]
