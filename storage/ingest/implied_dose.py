"""What dose a pair implies by its noise, whatever dose was stated for it.

Noise has a variance that is inverse to dose, so that the noise levels of both images tell the
fraction. The level is that of Immerkaer (1996), robust and with taps two pixels apart, as
`hqinet.noise.noise_level` has it on the device; here no torch is needed, which takes a worker
seconds to import.
"""

import numpy as np
from numpy.typing import NDArray

from storage.dataset.lazy_volume import LazyVolume

COARSEST_MM = 1.5
"""Pixel beyond which neighbours are so different that anatomy counts as noise."""
FACTOR = 1.6
"""Between the dose stated and the one implied, beyond which a reader is told."""
_JUDGED_SLICES = 7
_BODY_HU = -500.0
_LEAST_BODY = 500
"""Judged pixels of a slice, without which its level says nothing."""
_SCALE = 1.4826 / 6.0


def implied_dose(low: LazyVolume, full: LazyVolume, pixel: float) -> float | None:
    """Return the dose of the low series as a fraction of the full dose, as the noise has it.

    `(level of full / level of low)^2`, the median over evenly spaced slices; None where no slice
    has a body to judge, and for a `pixel` (mm) above COARSEST_MM.
    """
    if pixel > COARSEST_MM:
        return None
    slices = low.shape[0]
    ratios = []
    for z in np.unique(np.linspace(0, slices - 1, _JUDGED_SLICES).astype(int)).tolist():
        levels = [noise_level(volume[z : z + 1][0]) for volume in (full, low)]
        if all(levels):
            ratios.append((levels[0] / levels[1]) ** 2)
    return round(float(np.median(ratios)), 4) if ratios else None


def noise_level(hu: NDArray[np.int16]) -> float:
    """Return the standard deviation of the noise of a slice (rows, columns), HU; 0 for no body."""
    sparse = np.pad(hu.astype(np.float32), 2, mode="edge")[::2, ::2]
    response = np.abs(np.diff(np.diff(sparse, n=2, axis=0), n=2, axis=1))
    body = response[sparse[1:-1, 1:-1] > _BODY_HU]
    return float(np.median(body)) * _SCALE if body.size >= _LEAST_BODY else 0.0


def doubt(stated: float | None, implied: float | None) -> str:
    """What a reader must know of a dose that was stated and is not implied; empty for none."""
    if stated is None or implied is None or stated / FACTOR <= implied <= stated * FACTOR:
        return ""
    return (
        f"the noise implies a dose of {implied:.2g}, not the stated {stated:.2g}, which training "
        "and evaluation go by"
    )
