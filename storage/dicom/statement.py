"""What a derived instance says of its own making, read back from its attributes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from storage.dicom.attributes import text
from storage.dicom.derived import MANUFACTURER
from storage.errors import SourceError


@dataclass(frozen=True)
class Statement:
    """A derived instance in its own words; see `storage.dicom.derived` for the attributes.

    Attributes:
        frame: of the source instance, from 0.
        device: DeviceUID of our equipment item, which is the model's identity.
        lineage: what ContributionDescription says of the training.
    """

    file: Path
    study: str
    series: str
    instance: str
    source_series: str
    source_instance: str
    frame: int
    model: str
    device: str
    software: str
    made: str
    description: str
    lineage: dict[str, str]


def read_statement(file: Path) -> Statement:
    """Read what an instance says.

    Raises:
        SourceError: it is not there, no DICOM, or HQINet did not make it.
    """
    try:
        image = pydicom.dcmread(file, stop_before_pixels=True)
    except (OSError, InvalidDicomError) as error:
        raise SourceError(f"{file}: cannot be read as DICOM: {error}") from error
    items = image.get("ContributingEquipmentSequence") or []
    ours = [item for item in items if text(item, "Manufacturer") == MANUFACTURER]
    named = image.get("SourceImageSequence"), image.get("ReferencedSeriesSequence")
    if not ours or not all(named):
        raise SourceError(
            f"{file}: HQINet did not make it: its equipment is "
            f"{text(image, 'Manufacturer') or 'not stated'}; give a file of a derived series"
        )
    return _statement(file, image, ours[-1])


def read_values(file: Path) -> NDArray[np.integer]:
    """The stored values of an instance, (rows, columns)."""
    return pydicom.dcmread(file).pixel_array


def read_hu(file: Path) -> NDArray[np.int16]:
    """A derived instance in HU, (rows, columns); the reader of series refuses what is ours."""
    image = pydicom.dcmread(file)
    hu = image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)
    limits = np.iinfo(np.int16)
    return np.rint(hu).clip(limits.min, limits.max).astype(np.int16)


def _statement(file: Path, image: Dataset, ours: Dataset) -> Statement:
    (source, *_) = image.SourceImageSequence
    (series, *_) = image.ReferencedSeriesSequence
    parts = text(ours, "ContributionDescription").split("; ")
    return Statement(
        file=file,
        study=text(image, "StudyInstanceUID"),
        series=text(image, "SeriesInstanceUID"),
        instance=text(image, "SOPInstanceUID"),
        source_series=text(series, "SeriesInstanceUID"),
        source_instance=text(source, "ReferencedSOPInstanceUID"),
        frame=int(source.get("ReferencedFrameNumber") or 1) - 1,
        model=text(ours, "ManufacturerModelName").removeprefix(f"{MANUFACTURER} "),
        device=text(ours, "DeviceUID"),
        software=text(ours, "SoftwareVersions"),
        made=text(ours, "ContributionDateTime"),
        description=text(image, "DerivationDescription"),
        lineage=dict(part.split(" ", 1) for part in parts if " " in part),
    )
