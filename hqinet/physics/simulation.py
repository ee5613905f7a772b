"""Low-dose CT by simulation: project, add quantum and electronic noise, reconstruct.

Parallel-beam geometry, filtered back-projection. It serves the demonstration cohort and trials; it
is not a model of any scanner, and images made with it are to be called simulated.
"""

from dataclasses import dataclass
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

WATER = 0.0193
"""Linear attenuation of water at 70 keV, 1/mm (NIST XCOM)."""


@dataclass(frozen=True)
class Scan:
    """A parallel-beam acquisition.

    photons: mean counts a detector element receives without an object, at full dose.
    electronic: standard deviation of the readout noise, in counts.
    views: projections over half a turn.
    """

    photons: float = 8.0e4
    electronic: float = 8.0
    views: int = 180


def acquire(
    hu: Tensor, *, pixel: float, dose: float, scan: Scan, generator: torch.Generator
) -> Tensor:
    """Image what a scanner would see of `hu` at a fraction of the full dose.

    hu: (n, s, s) float32, HU; the object must lie inside the inscribed circle.
    pixel: pixel size in mm. dose: fraction of the full dose, above 0.
    Returns (n, s, s) float32 HU: filtered back-projection of the noisy line integrals.
    """
    angles = torch.arange(scan.views) * (pi / scan.views)
    attenuation = WATER * (1 + hu / 1000)
    sinogram = project(attenuation, angles, pixel)
    noisy = add_noise(sinogram, dose=dose, scan=scan, generator=generator)
    return 1000 * (reconstruct(noisy, angles, pixel) / WATER - 1)


def project(image: Tensor, angles: Tensor, pixel: float) -> Tensor:
    """Line integrals of `image` (n, s, s) in 1/mm: (n, views, s), without unit."""
    n, size, _ = image.shape
    views = []
    for angle in angles:
        cos, sin = torch.cos(angle), torch.sin(angle)
        turn = torch.stack([torch.stack([cos, -sin, cos * 0]), torch.stack([sin, cos, cos * 0])])
        grid = F.affine_grid(turn[None], [1, 1, size, size], align_corners=False)
        turned = F.grid_sample(image[None], grid, align_corners=False)
        views.append(turned[0].sum(dim=1) * pixel)
    return torch.stack(views, dim=1).reshape(n, len(angles), size)


def add_noise(sinogram: Tensor, *, dose: float, scan: Scan, generator: torch.Generator) -> Tensor:
    """Line integrals as measured: Poisson counts at `dose`, plus Gaussian readout noise."""
    incident = scan.photons * dose
    counts = torch.poisson(incident * torch.exp(-sinogram), generator=generator)
    counts = counts + scan.electronic * torch.randn(counts.shape, generator=generator)
    # A detector element that counted nothing still gives a finite line integral.
    return -torch.log(counts.clamp(min=1.0) / incident)


def reconstruct(sinogram: Tensor, angles: Tensor, pixel: float) -> Tensor:
    """Filtered back-projection (ramp with a cosine window) of (n, views, s): (n, s, s) in 1/mm."""
    filtered = _ramp(sinogram) / pixel
    n, _, size = sinogram.shape
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    image = torch.zeros(n, size, size)
    for view, angle in enumerate(angles):
        position = x * torch.cos(angle) + y * torch.sin(angle)
        grid = torch.stack([position, torch.zeros_like(position)], dim=-1)[None]
        image += F.grid_sample(filtered[None, :, view : view + 1], grid, align_corners=False)[0]
    return image * (pi / len(angles))


def _ramp(sinogram: Tensor) -> Tensor:
    size = sinogram.shape[-1]
    length = 2 * size
    # The ramp's exact samples in space (Kak & Slaney, eq. 3.61) leave no offset in the mean.
    index = torch.arange(-size, size)
    kernel = torch.where(index % 2 == 1, -1 / (pi * index.clamp(min=-size).float()) ** 2, 0.0)
    kernel[size] = 0.25
    response = torch.fft.rfft(torch.fft.ifftshift(kernel)).real
    frequency = torch.fft.rfftfreq(length)
    window = torch.cos(pi * frequency)
    spectrum = torch.fft.rfft(sinogram, n=length) * (response * window)
    return torch.fft.irfft(spectrum, n=length)[..., :size]
