"""Volumes in HU to DICOM series, in the folder layout of a TCIA download."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

INTERCEPT = -1024


@dataclass(frozen=True)
class SeriesIdentity:
    """Who and what a written series says it is; equal identities give equal UIDs."""

    collection: str
    patient: str
    description: str
    body_part: str
    manufacturer: str


def write_series(
    root: Path, hu: np.ndarray, spacing: tuple[float, float, float], identity: SeriesIdentity
) -> Path:
    """Write `hu` (slices, rows, columns), HU, as CT Image Storage files; returns their folder.

    spacing: (z, y, x) in mm; slices ascend along z. Values are rounded to whole HU and held to
    -1024..3071, 12 bit stored unsigned with RescaleIntercept -1024. File numbers are shuffled
    against slice order, as downloads have them, so that no reader may lean on names.
    """
    seeds = [identity.collection, identity.patient]
    study = generate_uid(entropy_srcs=[*seeds, "study"])
    series = generate_uid(entropy_srcs=[*seeds, identity.description])
    folder = (
        root
        / identity.collection
        / identity.patient
        / f"01-01-2026-NA-NA-{study[-5:]}"
        / f"1.000000-{identity.description}-{series[-5:]}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    stored = (np.clip(np.rint(hu), INTERCEPT, 3071) - INTERCEPT).astype("<u2")
    numbers = np.random.default_rng(len(stored)).permutation(len(stored)) + 1
    for index, (pixels, number) in enumerate(zip(stored, numbers, strict=True)):
        image = _image(pixels, spacing, identity)
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.FrameOfReferenceUID = generate_uid(entropy_srcs=[*seeds, "frame"])
        image.SOPInstanceUID = generate_uid(entropy_srcs=[series, str(index)])
        image.InstanceNumber = index + 1
        z = index * spacing[0]
        image.ImagePositionPatient = [
            -pixels.shape[1] * spacing[2] / 2,
            -pixels.shape[0] * spacing[1] / 2,
            z,
        ]
        image.SliceLocation = z
        image.file_meta = FileMetaDataset()
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.save_as(folder / f"1-{number:03d}.dcm", enforce_file_format=True)
    return folder


def _image(
    pixels: np.ndarray, spacing: tuple[float, float, float], identity: SeriesIdentity
) -> Dataset:
    image = Dataset()
    image.SOPClassUID = CTImageStorage
    image.Modality = "CT"
    image.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    image.PatientID = identity.patient
    image.PatientName = identity.patient
    image.SeriesNumber = 1
    image.SeriesDescription = identity.description
    image.BodyPartExamined = identity.body_part
    image.Manufacturer = identity.manufacturer
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    image.PixelSpacing = [spacing[1], spacing[2]]
    image.SliceThickness = spacing[0]
    image.Rows, image.Columns = pixels.shape
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.PixelRepresentation = 0
    image.RescaleSlope, image.RescaleIntercept, image.RescaleType = 1, INTERCEPT, "HU"
    image.PixelData = pixels.tobytes()
    return image
