"""How the noise of one series comes about: from line integrals to noise of the image.

Quantum and electronic noise after Yu et al. 2012 (J Comput Assist Tomogr 36), parallel beam.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hqinet.physics.acquisition import WATER
from hqinet.physics.projection import ParallelBeam, back_project, frequencies, project
from hqinet.physics.texture import Kernel


@dataclass(frozen=True)
class FullDose:
    """A full-dose series.

    Attributes:
        hu: (slices, rows, columns) int16.
        pixel: row and column spacing, mm.
        thickness: of a slice, mm.
        increment: from slice to slice, mm.
        kernel: name of its reconstruction kernel, where it has one.
    """

    hu: NDArray[np.int16] = field(repr=False)
    pixel: float
    thickness: float
    increment: float
    kernel: str | None = None


@dataclass(frozen=True)
class Detector:
    """What is known of the scanner.

    Attributes:
        photons: counts of an unattenuated ray, a pixel wide, of one view at full dose; None:
            calibrated on the series' own noise.
        electronic: variance of the readout noise, photons squared.
        bowtie: relative photons across the fan, from one edge of the detector to the other, at any
            number of evenly spaced places; empty: even.
        tube_current: relative photons over half a turn, likewise; empty: constant.
        views: projections over half a turn.
        kernels: by name; a series whose kernel is not among them has it estimated.
    """

    photons: float | None = None
    electronic: float = 0.0
    bowtie: tuple[float, ...] = ()
    tube_current: tuple[float, ...] = ()
    views: int = 720
    kernels: Mapping[str, Kernel] = field(default_factory=dict)


def line_integral_variance(
    integrals: Tensor, *, dose: float, photons: Tensor, electronic: float
) -> Tensor:
    """Return the variance that brings full-dose line integrals to a fraction of the dose.

    Yu et al. 2012, eq. 6: `((1 - a) / a) (e^p / I0) (1 + ((1 + a) / a) Ne e^p / I0)`. `integrals`:
    p, without unit; `photons`: I0, of a shape that fits; `electronic`: Ne, photons squared.
    """
    inverse = torch.exp(integrals) / photons
    return (1 - dose) / dose * inverse * (1 + (1 + dose) / dose * electronic * inverse)


@dataclass(frozen=True)
class Scanner:
    """The scanner of one series, reconstructing with its kernel."""

    beam: ParallelBeam
    matrix: tuple[int, int]
    pixel: float
    response: Tensor
    relative_photons: Tensor

    @classmethod
    def of(cls, images: Tensor, pixel: float, detector: Detector, kernel: Kernel) -> "Scanner":
        """`images`: (slices, rows, columns) on the device that computes; `pixel`: mm."""
        rows, columns = images.shape[1:]
        beam = ParallelBeam(math.ceil(max(rows, columns) / 32) * 32, detector.views)
        frequency = frequencies(beam, images.device)
        response = frequency * kernel.at(frequency / pixel)
        photons = torch.ones(beam.views, beam.bins, device=images.device)
        if detector.bowtie:
            photons = photons * _stretched(detector.bowtie, beam.bins).to(images.device)
        if detector.tube_current:
            photons = (
                photons * _stretched(detector.tube_current, beam.views).to(images.device)[:, None]
            )
        return cls(beam, (rows, columns), pixel, response, photons)

    def integrals(self, hu: Tensor) -> Tensor:
        """Line integrals of slices in HU, without unit: (n, views, bins)."""
        rows, columns = self.matrix
        top, left = (self.beam.size - rows) // 2, (self.beam.size - columns) // 2
        margins = (left, self.beam.size - columns - left, top, self.beam.size - rows - top)
        attenuation = WATER * self.pixel * (1 + hu / 1000).clamp_min(0)
        return project(F.pad(attenuation, margins), self.beam).clamp_min(0)

    def noise(self, variance: Tensor, white: Tensor) -> Tensor:
        """Noise of the image, HU (n, rows, columns), from that of the line integrals.

        `variance`: (n, views, bins); `white`: of unit variance, likewise.
        """
        noise = variance.sqrt() * white.to(variance.device)
        image = back_project(noise, self.beam, self.response)
        rows, columns = self.matrix
        top, left = (self.beam.size - rows) // 2, (self.beam.size - columns) // 2
        return image[:, top : top + rows, left : left + columns] * (1000 / (WATER * self.pixel))


def white_noise(
    beam: ParallelBeam, key: tuple[int, int], slice_: int, shares: tuple[float, ...] = (1.0,)
) -> Tensor:
    """White noise of unit variance (1, views, bins) for a slice, shared with its neighbours.

    Drawn on the CPU whatever computes with it, so that equal keys are equal noise.
    """
    total = torch.zeros(1, beam.views, beam.bins)
    for offset, share in enumerate(shares, start=slice_):
        state = np.random.SeedSequence([*key, offset]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0] >> 1))
        total += share * torch.randn(total.shape, generator=generator)
    return total


def _stretched(values: tuple[float, ...], length: int) -> Tensor:
    """Linear interpolation of evenly spaced values to `length` places."""
    given = torch.tensor(values).view(1, 1, -1)
    return F.interpolate(given, size=length, mode="linear", align_corners=True)[0, 0]
