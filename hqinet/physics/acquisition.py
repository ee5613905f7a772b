"""What a scanner would see of an object: counts with noise, and their reconstruction.

For phantoms, whose HU are known without noise; slices that have noise already are brought to a
lower dose by `hqinet.physics.dose_simulation`. It is a model of no scanner, and images made with it
are to be called simulated.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hqinet.physics.projection import ParallelBeam, back_project, frequencies, project, ramp

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

    hu: (n, s, s) float32, HU. pixel: pixel size in mm. dose: fraction of the full dose, above 0.
    Returns (n, s, s) float32 HU: filtered back-projection (ramp with a cosine window) of the noisy
    line integrals.
    """
    beam = ParallelBeam(hu.shape[-1], scan.views)
    integrals = project(WATER * pixel * (1 + hu / 1000), beam)
    noisy = add_noise(integrals, dose=dose, scan=scan, generator=generator)
    response = ramp(beam) * torch.cos(torch.pi * frequencies(beam))
    return 1000 * (back_project(noisy, beam, response) / (WATER * pixel) - 1)


def add_noise(integrals: Tensor, *, dose: float, scan: Scan, generator: torch.Generator) -> Tensor:
    """Line integrals as measured: Poisson counts at `dose`, plus Gaussian readout noise."""
    incident = scan.photons * dose
    counts = torch.poisson(incident * torch.exp(-integrals), generator=generator)
    counts = counts + scan.electronic * torch.randn(counts.shape, generator=generator)
    # A detector element that counted nothing still gives a finite line integral.
    return -torch.log(counts.clamp(min=1.0) / incident)
