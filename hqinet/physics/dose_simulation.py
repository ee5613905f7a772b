"""Low-dose slices made from full-dose ones: noise of the patient's own amount and texture.

Quantum and electronic noise of the line integrals after Yu et al. 2012 (J Comput Assist Tomogr 36),
reconstructed alone and added to the image. What a scan's own noise tells sets what is unknown of
the scanner: its level the photons, its spectrum the reconstruction filter.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hqinet.errors import HqinetError
from hqinet.noise import noise_level
from hqinet.physics.acquisition import WATER
from hqinet.physics.projection import ParallelBeam, back_project, frequencies, project

VERSION = 1
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
_FIRST_PHOTONS = 1e6
_ROUNDS = 6
_STEP = 0.7
_REGION = 32
_REGIONS = 400
"""Smoothest regions of a series that its noise spectrum is taken from, at most."""
_SMOOTH_SHARE = 0.3
"""Of the regions inside the body, those of least variance: the others hold structure."""
_BODY_HU = -200.0
_SMALLEST_POWER = 1e-4
"""Of the highest: no spectrum is taken to be zero anywhere."""


class SimulationError(HqinetError):
    """A series cannot get a simulated partner; the message is one line and holds the figures."""


@dataclass(frozen=True)
class FullDose:
    """A full-dose series.

    Attributes:
        hu: (slices, rows, columns) int16.
        pixel: row and column spacing, mm.
        thickness: of a slice, mm.
        increment: from slice to slice, mm.
    """

    hu: NDArray[np.int16] = field(repr=False)
    pixel: float
    thickness: float
    increment: float


@dataclass(frozen=True)
class Detector:
    """What is known of the scanner.

    Attributes:
        photons: counts of an unattenuated ray of one view at full dose; None: calibrated on the
            series' own noise.
        electronic: variance of the readout noise, photons squared.
        bowtie: relative photons across the fan, from one edge of the detector to the other, at any
            number of evenly spaced places; empty: even.
        tube_current: relative photons over half a turn, likewise; empty: constant.
        views: projections over half a turn.
    """

    photons: float | None = None
    electronic: float = 0.0
    bowtie: tuple[float, ...] = ()
    tube_current: tuple[float, ...] = ()
    views: int = 720


@dataclass(frozen=True)
class NoiseSpectrum:
    """Radial noise power, relative, at evenly spaced frequencies from 0 to 0.5 cycles a pixel."""

    power: tuple[float, ...]

    def at(self, frequency: Tensor) -> Tensor:
        """Return the power at frequencies (any shape) in cycles a pixel; constant beyond 0.5."""
        power = torch.tensor(self.power, device=frequency.device)
        place = (frequency * 2).clamp(0, 1) * (len(power) - 1)
        before = place.floor().long().clamp(max=len(power) - 2)
        return torch.lerp(power[before], power[before + 1], place - before)


@dataclass(frozen=True)
class SimulatedDose:
    """Low-dose realisations of a series, and what they were made with.

    Attributes:
        low: (realisations, slices, rows, columns) int16 HU.
        dose: stated fraction of the full dose.
        implied: `(noise level of full / noise level of low)^2`, median over the slices.
        photons: of an unattenuated ray of one view at full dose, as calibrated or given.
        spectrum: of the series' own noise.
    """

    low: NDArray[np.int16] = field(repr=False)
    dose: float
    implied: float
    photons: float
    spectrum: NoiseSpectrum


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
    alone. Raises ValueError for another dose, and SimulationError where the noise made implies a
    dose outside IMPLIED of the stated one.
    """
    if not 0 < dose < 1:
        raise ValueError(f"the dose must be above 0 and below 1, not {dose}")
    detector = detector or Detector()
    images = torch.from_numpy(series.hu).to(device)
    spectrum = noise_spectrum(images)
    scanner = _Scanner.of(images, series.pixel, dose, detector, spectrum)
    shares = slice_shares(series.thickness, series.increment)
    photons = detector.photons or _calibrated(scanner, images, seed)
    low = np.empty((realisations, *series.hu.shape), np.int16)
    ratios = []
    for z, slice_ in enumerate(images):
        deviation = scanner.deviation(scanner.integrals(slice_[None].float()), photons)
        for k in range(realisations):
            noise = scanner.noise(deviation, _white(scanner.beam, (seed, k), z, shares))
            noisy = (slice_ + noise[0]).clamp(AIR_HU, HIGHEST_HU).round()
            low[k, z] = noisy.to(torch.int16).cpu().numpy()
            ratios.append(float(noise_level(slice_[None]) / noise_level(noisy[None])))
    implied = float(np.median(ratios)) ** 2
    if not IMPLIED[0] <= implied / dose <= IMPLIED[1]:
        raise SimulationError(
            f"the pair would imply a dose of {implied:.2f}, not the stated {dose:.2f}: its noise "
            "level is not that of its quantum noise"
        )
    return SimulatedDose(low, dose, implied, photons, spectrum)


def line_integral_variance(
    integrals: Tensor, *, dose: float, photons: Tensor, electronic: float
) -> Tensor:
    """Return the variance that brings full-dose line integrals to a fraction of the dose.

    Yu et al. 2012, eq. 6: `((1 - a) / a) (e^p / I0) (1 + ((1 + a) / a) Ne e^p / I0)`. `integrals`:
    p, without unit; `photons`: I0, of a shape that fits; `electronic`: Ne, photons squared.
    """
    inverse = torch.exp(integrals) / photons
    return (1 - dose) / dose * inverse * (1 + (1 + dose) / dose * electronic * inverse)


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


def noise_spectrum(images: Tensor) -> NoiseSpectrum:
    """Estimate the radial spectrum of a series' noise from differences of neighbouring slices.

    In the smoothest regions of the body; anatomy that changes from slice to slice remains in the
    lowest frequencies, so that the median over regions is taken, which for a periodogram is ln 2 of
    the mean. A series of one slice: of the slice itself. `images`: (slices, rows, columns), HU.
    """
    images = images.float()
    change = images.diff(dim=0) / math.sqrt(2) if len(images) > 1 else images
    regions, variances = [], []
    for z in range(len(change)):
        body = images[z : z + 2].amin(0) > _BODY_HU
        inside = _regions(body).flatten(-2).float().mean(-1) > 0.98
        found = _without_slope(_regions(change[z])[inside])
        regions.append(found)
        variances.append(found.square().mean((1, 2)))
    every, variance = torch.cat(regions), torch.cat(variances)
    if len(every) == 0:
        raise SimulationError("no region of 32x32 pixels lies in the body: no noise spectrum")
    count = max(1, min(_REGIONS, int(len(every) * _SMOOTH_SHARE)))
    chosen = every[variance.argsort()[:count]]
    chosen = chosen / chosen.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-6)
    taper = torch.hann_window(_REGION, device=images.device)
    power = torch.fft.fft2(chosen * taper * taper[:, None]).abs().square().median(0).values
    return NoiseSpectrum(tuple(_radial(power).tolist()))


def _radial(power: Tensor) -> Tensor:
    """Mean over rings of a (n, n) spectrum, smoothed over three rings: (n // 2 + 1,)."""
    axis = torch.fft.fftfreq(len(power), device=power.device) * len(power)
    ring = torch.hypot(axis[:, None], axis).round().long().clamp(max=len(power) // 2).flatten()
    total = torch.zeros(len(power) // 2 + 1, device=power.device)
    mean = total.index_add(0, ring, power.flatten()) / torch.bincount(ring)
    # Slopes were taken off: the lowest rings say nothing of their own.
    mean[0] = mean[1] = mean[2] * 0.5
    padded = F.pad(mean[None, None], (1, 1), mode="replicate")[0, 0]
    smooth = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
    return (smooth / smooth.max()).clamp_min(_SMALLEST_POWER)


def _regions(x: Tensor) -> Tensor:
    """(rows, columns) to half-overlapping square regions (a, b, side, side)."""
    return x.unfold(0, _REGION, _REGION // 2).unfold(1, _REGION, _REGION // 2)


def _without_slope(x: Tensor) -> Tensor:
    """Take the least-squares plane off each region (n, side, side)."""
    axis = torch.arange(_REGION, device=x.device) - (_REGION - 1) / 2
    power = axis.square().sum() * _REGION
    x = x - x.mean((1, 2), keepdim=True)
    along = (x * axis).sum((1, 2), keepdim=True) / power
    across = (x * axis[:, None]).sum((1, 2), keepdim=True) / power
    return x - along * axis - across * axis[:, None]


@dataclass(frozen=True)
class _Scanner:
    """How the noise of one series comes about."""

    beam: ParallelBeam
    matrix: tuple[int, int]
    pixel: float
    dose: float
    detector: Detector
    response: Tensor
    relative_photons: Tensor

    @classmethod
    def of(
        cls,
        images: Tensor,
        pixel: float,
        dose: float,
        detector: Detector,
        spectrum: NoiseSpectrum,
    ) -> "_Scanner":
        rows, columns = images.shape[1:]
        beam = ParallelBeam(math.ceil(max(rows, columns) / 32) * 32, detector.views)
        frequency = frequencies(beam, images.device)
        # White noise filtered with H and back-projected has the spectrum H^2 / f.
        response = (frequency * spectrum.at(frequency)).sqrt()
        photons = torch.ones(beam.views, beam.bins, device=images.device)
        if detector.bowtie:
            photons = photons * _stretched(detector.bowtie, beam.bins).to(images.device)
        if detector.tube_current:
            photons = (
                photons * _stretched(detector.tube_current, beam.views).to(images.device)[:, None]
            )
        return cls(beam, (rows, columns), pixel, dose, detector, response, photons)

    def integrals(self, hu: Tensor) -> Tensor:
        """Line integrals of slices in HU, without unit: (n, views, bins)."""
        rows, columns = self.matrix
        top, left = (self.beam.size - rows) // 2, (self.beam.size - columns) // 2
        margins = (left, self.beam.size - columns - left, top, self.beam.size - rows - top)
        attenuation = WATER * self.pixel * (1 + hu / 1000).clamp_min(0)
        return project(F.pad(attenuation, margins), self.beam).clamp_min(0)

    def deviation(self, integrals: Tensor, photons: float) -> Tensor:
        """Standard deviation of the noise to add to each line integral: (n, views, bins)."""
        return line_integral_variance(
            integrals,
            dose=self.dose,
            photons=photons * self.relative_photons,
            electronic=self.detector.electronic,
        ).sqrt()

    def noise(self, deviation: Tensor, white: Tensor) -> Tensor:
        """Noise of the image, HU: (n, rows, columns)."""
        image = back_project(deviation * white.to(deviation.device), self.beam, self.response)
        rows, columns = self.matrix
        top, left = (self.beam.size - rows) // 2, (self.beam.size - columns) // 2
        return image[:, top : top + rows, left : left + columns] * (1000 / (WATER * self.pixel))


def _stretched(values: tuple[float, ...], length: int) -> Tensor:
    """Linear interpolation of evenly spaced values to `length` places."""
    given = torch.tensor(values).view(1, 1, -1)
    return F.interpolate(given, size=length, mode="linear", align_corners=True)[0, 0]


def _white(
    beam: ParallelBeam, key: tuple[int, int], slice_: int, shares: tuple[float, ...]
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


def _calibrated(scanner: _Scanner, images: Tensor, seed: int) -> float:
    """Return the photons with which the simulated noise of full dose has the series' own level.

    At dose a the variance added is to be `(1 - a) / a` of the full dose's; both levels are taken by
    the mask of `noise_level`, whose response to the sum is that of independent noise.
    """
    picks = np.linspace(0, len(images) - 1, min(CALIBRATION_SLICES, len(images))).round()
    slices = [images[z : z + 1].float() for z in picks.astype(int)]
    integrals = [scanner.integrals(hu) for hu in slices]
    whites = [_white(scanner.beam, (seed, _CALIBRATING), z, (1.0,)) for z in range(len(slices))]
    photons = _FIRST_PHOTONS
    wanted = (1 - scanner.dose) / scanner.dose
    for _ in range(_ROUNDS):
        ratios = []
        for hu, integral, white in zip(slices, integrals, whites, strict=True):
            noisy = hu + scanner.noise(scanner.deviation(integral, photons), white)
            ratios.append(float((noise_level(noisy) / noise_level(hu)) ** 2 - 1) / wanted)
        # Variance falls with the photons where quantum noise prevails, with their square where
        # electronic noise does: the power in between converges for both.
        photons *= max(float(np.median(ratios)), _SMALLEST_POWER) ** _STEP
    return photons
