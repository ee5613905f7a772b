"""Radial noise power spectrum (NPS) of a residual inside the body.

Method: half-overlapping square regions that lie wholly in the body, mean removed, squared Fourier
magnitude scaled to HU^2 mm^2 and averaged over regions, then over rings of equal frequency (ICRU
Report 87).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

REGION = 32
SMALL_REGION = 16
"""Side of a region in pixels, and in matrices below SMALL_MATRIX."""
SMALL_MATRIX = 256
BANDS = tuple(np.linspace(0, 1.2, 13).tolist())
"""Borders of bands of frequency, 1/mm; the last lies beyond what CT resolves."""


@dataclass(frozen=True)
class NoisePower:
    """A patient's NPS: `power` (HU^2 mm^2) at `frequency` (1/mm), over `regions` regions."""

    frequency: tuple[float, ...]
    power: tuple[float, ...]
    regions: int


class NoisePowerMeter:
    """Gathers the NPS of one patient, some slices at a time."""

    def __init__(self, matrix: tuple[int, int], spacing: tuple[float, float]) -> None:
        """`matrix`: rows and columns. `spacing`: row and column spacing in mm."""
        self.side = SMALL_REGION if min(matrix) < SMALL_MATRIX else REGION
        self.spacing = spacing
        self.total = torch.zeros(self.side, self.side, dtype=torch.float64)
        self.regions = 0

    def add(self, residual: Tensor, body: Tensor) -> None:
        """Add slices: `residual` (n, rows, columns) float32 HU, `body` bool of the same shape."""
        inside = self._regions(body).all(-1).all(-1)
        if not inside.any():
            return
        chosen = self._regions(residual)[inside]
        chosen = chosen - chosen.mean((-2, -1), keepdim=True)
        power = torch.fft.fft2(chosen).abs().square().sum(0)
        self.total += power.cpu().double()
        self.regions += len(chosen)

    def result(self) -> NoisePower:
        """The spectrum so far; empty where no region fits into the body."""
        if self.regions == 0:
            return NoisePower((), (), 0)
        dy, dx = self.spacing
        side = self.side
        power = self.total.numpy() / self.regions * dy * dx / side**2
        fy, fx = np.fft.fftfreq(side, dy)[:, None], np.fft.fftfreq(side, dx)[None, :]
        step = 1 / (side * max(dy, dx))
        ring = np.rint(np.hypot(fy, fx) / step).astype(int).ravel()
        # Beyond the Nyquist frequency only the corners of the square have samples.
        rings = np.arange(1, side // 2 + 1)
        mean = np.bincount(ring, power.ravel())[rings] / np.bincount(ring)[rings]
        return NoisePower(tuple((rings * step).tolist()), tuple(mean.tolist()), self.regions)

    def _regions(self, x: Tensor) -> Tensor:
        return x.unfold(1, self.side, self.side // 2).unfold(2, self.side, self.side // 2)


def mean_frequency(noise: NoisePower) -> float:
    """Return the mean frequency of the noise, 1/mm, rings weighted by their area; NaN if empty.

    What a reader sees as grain: it falls where a denoiser leaves blotches.
    """
    frequency, power = np.array(noise.frequency), np.array(noise.power)
    weight = frequency * power
    return float((frequency * weight).sum() / weight.sum()) if weight.sum() > 0 else np.nan


def power_of(
    residuals: Iterable[tuple[Tensor, Tensor]],
    matrix: tuple[int, int],
    spacing: tuple[float, float],
) -> NoisePower:
    """Return the NPS over residuals, each with its body.

    As `NoisePowerMeter` takes them, some slices at a time; `matrix` and `spacing` as there.
    """
    meter = NoisePowerMeter(matrix, spacing)
    for residual, body in residuals:
        meter.add(residual, body)
    return meter.result()


def band_shares(noise: NoisePower) -> tuple[float, ...] | None:
    """Return the share of the noise's variance in each of BANDS, for spectra of any pixel size.

    Rings weighted by their area, spread evenly from half a ring below to half a ring above; None
    for an empty spectrum.
    """
    frequency = np.array(noise.frequency)
    variance = frequency * np.array(noise.power)
    if not variance.sum() > 0:
        return None
    borders = np.append(frequency - frequency[0] / 2, frequency[-1] + frequency[0] / 2)
    below = np.interp(BANDS, borders, np.append(0, variance.cumsum() / variance.sum()))
    return tuple(np.diff(below).round(4).tolist())


def peak_frequency(noise: NoisePower) -> float:
    """Return the frequency of the highest ring, 1/mm; NaN for an empty spectrum."""
    return noise.frequency[int(np.argmax(noise.power))] if noise.power else np.nan


def spectral_distance(one: NoisePower, other: NoisePower) -> float:
    """Return how far two spectra of one grid are apart, 0 (one shape) to 1 (nothing shared).

    Half the absolute difference of the variances in each ring, both normalised to one: amount does
    not count, texture does. ValueError where the grids differ; NaN for an empty spectrum.
    """
    if one.frequency != other.frequency:
        raise ValueError("the spectra stand at different frequencies")
    shares = []
    for noise in (one, other):
        variance = np.array(noise.frequency) * np.array(noise.power)
        if not variance.sum() > 0:
            return np.nan
        shares.append(variance / variance.sum())
    return float(np.abs(shares[0] - shares[1]).sum() / 2)
