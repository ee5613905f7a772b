"""HU and the network's intensity: one range, to which every figure of the paper refers."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    # Recipes are read by commands that need not wait for torch.
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

HU_OFFSET = 1024
HU_RANGE = 4095
"""Intensities are `(HU + HU_OFFSET) / HU_RANGE`; the table of Lu et al. 2021 fits this range."""
AIR_HU = -HU_OFFSET
_Intensity = TypeVar("_Intensity", "Tensor", "NDArray[np.float32]")


def window_edges(level: float, width: float) -> tuple[float, float]:
    """HU that a display shows black and white (DICOM PS3.3 C.11.2.1.2.1, linear)."""
    half = (width - 1) / 2
    return level - 0.5 - half, level - 0.5 + half


def normalise(hu: _Intensity) -> _Intensity:
    """HU to the network's intensity: [-1024, 3071] to [0, 1]."""
    return (hu + HU_OFFSET) / HU_RANGE


def denormalise(intensity: _Intensity) -> _Intensity:
    """Undo `normalise`: intensity to HU."""
    return intensity * HU_RANGE - HU_OFFSET
