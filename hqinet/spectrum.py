"""Radial noise power spectrum (NPS) of a residual inside the body.

Method: square regions that lie wholly in the body, mean removed, squared Fourier magnitude scaled
to HU^2 mm^2 and averaged over regions, then over rings of equal frequency (ICRU Report 87).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

REGION = 32
"""Side of a region in pixels."""


@dataclass(frozen=True)
class NoisePower:
    """A patient's NPS: `power` (HU^2 mm^2) at `frequency` (1/mm), over `regions` regions."""

    frequency: tuple[float, ...]
    power: tuple[float, ...]
    regions: int


class NoisePowerMeter:
    """Gathers the NPS of one patient, some slices at a time."""

    def __init__(self, spacing: tuple[float, float]) -> None:
        """`spacing`: row and column spacing in mm."""
        self.spacing = spacing
        self.total = torch.zeros(REGION, REGION, dtype=torch.float64)
        self.regions = 0

    def add(self, residual: Tensor, body: Tensor) -> None:
        """Add slices: `residual` (n, rows, columns) float32 HU, `body` bool of the same shape."""
        inside = _regions(body).all(-1).all(-1)
        if not inside.any():
            return
        chosen = _regions(residual)[inside]
        chosen = chosen - chosen.mean((-2, -1), keepdim=True)
        power = torch.fft.fft2(chosen).abs().square().sum(0)
        self.total += power.double().cpu()
        self.regions += len(chosen)

    def result(self) -> NoisePower:
        """The spectrum so far; empty where no region fits into the body."""
        if self.regions == 0:
            return NoisePower((), (), 0)
        dy, dx = self.spacing
        power = self.total.numpy() / self.regions * dy * dx / REGION**2
        fy, fx = np.fft.fftfreq(REGION, dy)[:, None], np.fft.fftfreq(REGION, dx)[None, :]
        step = 1 / (REGION * max(dy, dx))
        ring = np.rint(np.hypot(fy, fx) / step).astype(int).ravel()
        # Beyond the Nyquist frequency only the corners of the square have samples.
        rings = np.arange(1, REGION // 2 + 1)
        mean = np.bincount(ring, power.ravel())[rings] / np.bincount(ring)[rings]
        return NoisePower(tuple((rings * step).tolist()), tuple(mean.tolist()), self.regions)


def _regions(x: Tensor) -> Tensor:
    return x.unfold(1, REGION, REGION).unfold(2, REGION, REGION)
