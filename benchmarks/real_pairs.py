"""The real CT of `HQINET_REAL_DATA`, read as the benchmarks need it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from hqinet.physics.scanner import FullDose

CHEST_DOSE, OTHER_DOSE = 0.10, 0.25


@dataclass(frozen=True)
class RealPair:
    """A patient's full dose, and the low dose that came with it, (slices, rows, columns) HU."""

    patient: str
    full: FullDose
    low: NDArray[np.int16] | None
    dose: float


def read_pair(data: Path, patient: str, slices: int | None = None) -> RealPair:
    """Read all slices of a patient, or so many from the middle."""
    found: dict[bool, list[pydicom.Dataset]] = {True: [], False: []}
    for file in data.rglob("*.dcm"):
        # Folders are named after patients: no other file need be opened.
        if patient in file.parts:
            header = pydicom.dcmread(file)
            found["low" in header.SeriesDescription.lower()].append(header)
    volumes = {}
    for low, files in found.items():
        files.sort(key=lambda file: float(file.ImagePositionPatient[2]))
        count = min(slices or len(files), len(files))
        first = (len(files) - count) // 2
        images = [
            file.pixel_array.astype(np.int16) + np.int16(file.RescaleIntercept)
            for file in files[first : first + count]
        ]
        volumes[low] = np.stack(images) if images else None
    one, two = found[False][:2]
    increment = abs(float(two.ImagePositionPatient[2]) - float(one.ImagePositionPatient[2]))
    full = FullDose(
        volumes[False], float(one.PixelSpacing[0]), float(one.SliceThickness), increment
    )
    dose = CHEST_DOSE if patient.startswith("C") else OTHER_DOSE
    return RealPair(patient, full, volumes[True], dose)
