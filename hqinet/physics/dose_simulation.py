"""Low-dose slices made from full-dose ones: noise of the patient's own amount and texture.

Noise of the line integrals is reconstructed alone and added to the image. What a scan's own noise
tells sets what is unknown of the scanner: its level the photons, its spectrum the kernel.
"""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hqinet.errors import HqinetError
from hqinet.noise import noise_level
from hqinet.physics.scanner import (
    Detector,
    FullDose,
    Scanner,
    line_integral_variance,
    white_noise,
)
from hqinet.physics.texture import Kernel, series_kernel

VERSION = 2
"""Of the simulator: raised when the same series, dose and seed make other noise."""
AIR_HU = -1024.0
HIGHEST_HU = 3071.0
IMPLIED = (0.8, 1.25)
"""Bounds of the dose that a simulated pair implies over the dose that it states."""
CALIBRATION_SLICES = 5
"""Evenly spaced slices on whose noise the photons are calibrated."""
_CALIBRATING = 2**31
"""Number of the realisation that photons are calibrated with, beyond those that are used."""
_LONG_SERIES = 400
_NOTHING_SHARED = 1e-6
_FIRST_PHOTONS = 1e5
_ROUNDS = 6
_STEP = 0.7
_SMALLEST_RATIO = 1e-4


class SimulationError(HqinetError):
    """A series cannot get a simulated partner; the message is one line and holds the figures."""


@dataclass(frozen=True)
class SimulatedDose:
    """Low-dose realisations of a series, and what they were made with.

    Attributes:
        low: (realisations, slices, rows, columns) int16 HU.
        dose: stated fraction of the full dose.
        implied: `(noise level of full / noise level of low)^2`, median over the slices.
        photons: of an unattenuated ray of one view at full dose, as calibrated or given.
        kernel: of the series, as known or estimated.
    """

    low: NDArray[np.int16] = field(repr=False)
    dose: float
    implied: float
    photons: float
    kernel: Kernel


def simulate_dose(
    series: FullDose,
    *,
    dose: float,
    seed: int,
    realisations: int = 1,
    detector: Detector | None = None,
    device: torch.device | str = "cpu",
) -> SimulatedDose:
    """Return what a series would be at a fraction of its dose, above 0 and below 1.

    The noise of slice z in realisation k depends on the seed, z, k and the pixels of the series
    alone. Raises ValueError for another dose, SimulationError where the noise made implies a dose
    outside IMPLIED of the stated one, and TextureError where the series has no body.
    """
    if not 0 < dose < 1:
        raise ValueError(f"the dose must be above 0 and below 1, not {dose}")
    detector = detector or Detector()
    images = torch.from_numpy(series.hu).to(device)
    kernel = detector.kernels.get(series.kernel or "") or series_kernel(images, series.pixel)
    scanner = Scanner.of(images, series.pixel, detector, kernel)
    shares = slice_shares(series.thickness, series.increment)
    variance = partial(line_integral_variance, dose=dose, electronic=detector.electronic)
    photons = detector.photons or _calibrated(scanner, images, variance, (1 - dose) / dose, seed)
    low = np.empty((realisations, *series.hu.shape), np.int16)
    ratios = []
    for z, slice_ in enumerate(images):
        integrals = scanner.integrals(slice_[None].float())
        added = variance(integrals, photons=photons * scanner.relative_photons)
        for k in range(realisations):
            noise = scanner.noise(added, white_noise(scanner.beam, (seed, k), z, shares))
            noisy = (slice_ + noise[0]).clamp(AIR_HU, HIGHEST_HU).round()
            low[k, z] = noisy.to(torch.int16).cpu().numpy()
            ratios.append(float(noise_level(slice_[None]) / noise_level(noisy[None])))
    implied = float(np.median(ratios)) ** 2
    if not IMPLIED[0] <= implied / dose <= IMPLIED[1]:
        raise SimulationError(
            f"the pair would imply a dose of {implied:.2f}, not the stated {dose:.2f}: its noise "
            "level is not that of its quantum noise"
        )
    return SimulatedDose(low, dose, implied, photons, kernel)


def slice_shares(thickness: float, increment: float) -> tuple[float, ...]:
    """Return the shares of independent noises, one a slice, in the noise of a slice.

    Slices of a box profile have `1 - k increment / thickness` of their data in common with the k-th
    neighbour: the noise is a moving average of that autocovariance. Its weights, whose squares sum
    to one, are the last row of the Cholesky factor of a long series' covariance (Bauer 1955).
    """
    lags = np.arange(_LONG_SERIES) * (increment / thickness)
    shared = np.clip(1 - lags, 0, 1)
    order = int(np.count_nonzero(shared > _NOTHING_SHARED))
    place = np.arange(_LONG_SERIES)
    covariance = shared[np.abs(place[:, None] - place)]
    last = np.linalg.cholesky(covariance + 1e-9 * np.eye(_LONG_SERIES))[-1]
    return tuple(last[-order:].tolist())


def _calibrated(
    scanner: Scanner, images: Tensor, variance: partial[Tensor], wanted: float, seed: int
) -> float:
    """Return the photons with which the simulated noise of full dose has the series' own level.

    The variance added is to be `wanted` times the full dose's, `(1 - a) / a`; both levels are taken
    by the mask of `noise_level`, whose response to the sum is that of independent noise.
    """
    picks = np.linspace(0, len(images) - 1, min(CALIBRATION_SLICES, len(images))).round()
    slices = [images[z : z + 1].float() for z in picks.astype(int)]
    integrals = [scanner.integrals(hu) for hu in slices]
    whites = [white_noise(scanner.beam, (seed, _CALIBRATING), z) for z in range(len(slices))]
    photons = _FIRST_PHOTONS
    for _ in range(_ROUNDS):
        ratios = []
        for hu, integral, white in zip(slices, integrals, whites, strict=True):
            added = variance(integral, photons=photons * scanner.relative_photons)
            noisy = hu + scanner.noise(added, white)
            ratios.append(float((noise_level(noisy) / noise_level(hu)) ** 2 - 1) / wanted)
        # Variance falls with the photons where quantum noise prevails, with their square where
        # electronic noise does: the power in between converges for both.
        photons *= max(float(np.median(ratios)), _SMALLEST_RATIO) ** _STEP
    return photons
