"""Volumes in HU, and one patient's pair of them."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hqinet.noise import noise_level

IMPLIED_DOSES = (0.02, 0.9)
"""Bounds of the dose that a pair can imply: structure and resampling deceive beyond."""
_JUDGED_SLICES = 7


class HuVolume(Protocol):
    """A volume in HU, int16 (slices, rows, columns): a NumPy array, or slices read from a store."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Slices, rows, columns."""

    def __getitem__(self, index: slice, /) -> NDArray[np.int16]:
        """Return consecutive slices as int16 HU."""


@dataclass(frozen=True)
class VolumePair:
    """One patient: the low-dose volume and the full-dose volume of the same shape."""

    patient: str
    anatomy: str
    low: HuVolume
    full: HuVolume
    dose: float | None = None
    """Of the low-dose volume, as stated, as a fraction of the full dose; None: not stated."""
    repeats: tuple[HuVolume, ...] = ()
    """Further realisations of the low dose: training draws among them and `low`."""

    def __post_init__(self) -> None:
        for low in self.lows:
            if tuple(low.shape) != tuple(self.full.shape) or len(low.shape) != 3:
                message = (
                    f"patient {self.patient}: low dose is {tuple(low.shape)} and full dose "
                    f"{tuple(self.full.shape)}; both must be the same (slices, rows, columns)"
                )
                raise ValueError(message)

    @property
    def lows(self) -> tuple[HuVolume, ...]:
        """All realisations of the low dose."""
        return (self.low, *self.repeats)

    def known_dose(self) -> float:
        """Return the dose as stated, else as the noise of both volumes implies it.

        Variance is inverse to dose: `(level of full / level of low)^2`, the median over evenly
        spaced slices, within IMPLIED_DOSES.
        """
        if self.dose is not None:
            return self.dose
        picks = np.linspace(0, self.slices - 1, min(_JUDGED_SLICES, self.slices)).astype(int)
        ratios = []
        for z in picks:
            full, low = (
                noise_level(torch.from_numpy(np.ascontiguousarray(stack[z : z + 1])))
                for stack in (self.full, self.low)
            )
            ratios.append(float(full / low) ** 2)
        return float(np.clip(np.median(ratios), *IMPLIED_DOSES))

    @property
    def slices(self) -> int:
        """Number of slices, each of which is the middle of one window."""
        return int(self.low.shape[0])

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.low.shape[1]), int(self.low.shape[2])
