"""A detector from what scans of known doses show: photons, electronic noise, kernels.

The difference of low and full dose is noise alone. Its variance in a region of the image is that of
quantum noise over the photons and of electronic noise over their square (Yu et al. 2012): where
rays are weakened differently, both are told apart.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

from hqinet.errors import HqinetError
from hqinet.physics.scanner import Detector, FullDose, Scanner, white_noise
from hqinet.physics.texture import Kernel, kernel_of, mean_kernel, regions, regions_inside

_SLICES = 6
"""Evenly spaced ones of each scan that are looked at."""
_REALISATIONS = 2
"""Of the noise of one photon, whose variance is compared with what was measured."""
_GROUPS = 16
"""Of regions with equal attenuation: the variance of one region is known to ten per cent only."""
_BODY_HU = -200


class CalibrationError(HqinetError):
    """No detector fits; the message is one line."""


@dataclass(frozen=True)
class DosePair:
    """One scan at two doses.

    Attributes:
        full: at full dose.
        low: (slices, rows, columns) int16 HU on the same grid.
        dose: of `low`, as a fraction of the full dose.
    """

    full: FullDose
    low: NDArray[np.int16] = field(repr=False)
    dose: float


@dataclass(frozen=True)
class Calibration:
    """What was found.

    Attributes:
        detector: photons, electronic noise and kernels; the rest as it was given.
        misfit: root mean square of measured over fitted variance less one, over groups of regions.
    """

    detector: Detector
    misfit: float


def calibrate(scans: Sequence[DosePair], detector: Detector | None = None) -> Calibration:
    """Fit photons and electronic noise to scans of one technique, and each kernel's MTF.

    Bowtie, tube current and views of `detector` are taken as they are. Raises CalibrationError
    where there is no scan, or noise that no photons explain, and TextureError for a scan without
    a body.
    """
    if not scans:
        raise CalibrationError("there is no scan at two known doses to calibrate on")
    detector = detector or Detector()
    estimated = [_kernel(scan) for scan in scans]
    named = defaultdict[str, list[Kernel]](list)
    for scan, kernel in zip(scans, estimated, strict=True):
        if scan.full.kernel:
            named[scan.full.kernel].append(kernel)
    kernels = {name: mean_kernel(found) for name, found in sorted(named.items())}
    rows = [
        _variances(scan, detector, kernels.get(scan.full.kernel or "", kernel))
        for scan, kernel in zip(scans, estimated, strict=True)
    ]
    photons, electronic, misfit = _fit(np.concatenate(rows))
    fitted = Detector(
        photons, electronic, detector.bowtie, detector.tube_current, detector.views, kernels
    )
    return Calibration(fitted, misfit)


def _picks(scan: DosePair) -> Iterable[tuple[Tensor, Tensor]]:
    """Full dose (1, rows, columns) and added noise of evenly spaced slices, HU."""
    count = len(scan.low)
    for z in np.linspace(0, count - 1, min(_SLICES, count)).round().astype(int):
        full = torch.from_numpy(scan.full.hu[z : z + 1]).float()
        yield full, torch.from_numpy(scan.low[z : z + 1]).float() - full


def _kernel(scan: DosePair) -> Kernel:
    full, added = (torch.cat(parts) for parts in zip(*_picks(scan), strict=True))
    return kernel_of(added, full > _BODY_HU, scan.full.pixel)


def _variances(scan: DosePair, detector: Detector, kernel: Kernel) -> NDArray[np.float64]:
    """Variance of the added noise, and of one photon's quantum and electronic noise at this dose.

    Returns (groups, 3): means over regions of like quantum noise.
    """
    images = torch.from_numpy(scan.full.hu)
    scanner = Scanner.of(images, scan.full.pixel, detector, kernel)
    a, found = scan.dose, []
    for z, (full, added) in enumerate(_picks(scan)):
        inside = regions_inside(full[0] > _BODY_HU)
        weakened = torch.exp(scanner.integrals(full)) / scanner.relative_photons
        quantum, electronic = torch.zeros(2, *inside.shape)
        for k in range(_REALISATIONS):
            white = white_noise(scanner.beam, (k, 0), z)
            quantum += _region_variance(scanner.noise(weakened, white)[0])
            electronic += _region_variance(scanner.noise(weakened.square(), white)[0])
        quantum *= (1 - a) / a / _REALISATIONS
        electronic *= (1 - a) * (1 + a) / a**2 / _REALISATIONS
        measured = _region_variance(added[0])
        found.append(torch.stack([measured, quantum, electronic], -1)[inside])
    rows = torch.cat(found).double().numpy()
    ordered = rows[rows[:, 1].argsort()]
    return np.array([group.mean(0) for group in np.array_split(ordered, _GROUPS) if len(group)])


def _region_variance(noise: Tensor) -> Tensor:
    """(rows, columns) to the variance in each region (a, b)."""
    return regions(noise).var((-2, -1))


def _fit(rows: NDArray[np.float64]) -> tuple[float, float, float]:
    """Photons, electronic noise in photons squared, and the misfit, of (groups, 3) variances."""
    measured, columns = rows[:, 0], rows[:, 1:]
    relative = columns / measured[:, None]
    scale = relative.max(axis=0)
    shares, _ = nnls(relative / scale, np.ones(len(rows)))
    inverse, squared = shares / scale
    if inverse <= 0:
        raise CalibrationError(
            "the noise grows with attenuation otherwise than quantum noise does: give scans at "
            "doses that are known, of one technique"
        )
    fitted = columns @ (inverse, squared)
    misfit = float(np.sqrt(np.mean((measured / fitted - 1) ** 2)))
    return float(1 / inverse), float(squared / inverse**2), misfit
