"""What a model was trained on, and whether a series lies within it: both measured alike."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hqinet.quality.noise_spectrum import band_shares, mean_frequency
from hqinet.quality.removal import highest_hu, noise_power
from hqinet.restoration.envelope import Envelope, Range, SeriesFacts, measured_noise
from hqinet.samples.pairs import HuVolume
from storage.dataset.rows import Accepted
from storage.dataset.versions import Snapshot
from storage.dicom.headers import FileHeader
from storage.dicom.series import Series
from storage.ingest import cohort
from storage.ingest.cohort import CohortRules
from storage.stores import files
from storage.vocabulary import kernel_of, vendor_of

ENVELOPE = "envelope.json"
"""Artifact of a model's run: what it was trained on."""


def write_envelope(file: Path, snapshot: Snapshot, drawn: Range | None) -> Path:
    """Write what a model is trained on, by which `hqinet denoise` knows what it knows.

    drawn: range of the doses that the recipe makes of the patients'.
    """
    series = [_of_row(row, snapshot.volume(row.patient).low) for row in snapshot.patients("train")]
    files.write(file, Envelope.of(series, drawn).model_dump_json(by_alias=True, indent=1).encode())
    return file


def _of_row(row: Accepted, low: HuVolume) -> SeriesFacts:
    power = noise_power(low, row.spacing[1:])
    return SeriesFacts(
        vendor=row.vendor,
        kernel=row.kernel,
        anatomy=row.anatomy,
        pixel=max(row.spacing[1:]),
        increment=row.spacing[0],
        thickness=row.thickness,
        matrix=max(row.matrix),
        noise=measured_noise(low),
        frequency=mean_frequency(power),
        spectrum=band_shares(power),
        highest=highest_hu(low),
        kvp=row.kvp,
        dose=row.implied_dose or row.dose_fraction,
    )


def facts_of(
    header: FileHeader, series: Series, low: NDArray[np.int16], rules: CohortRules, dose: float
) -> SeriesFacts:
    """What is known of a series that is to be restored.

    Args:
        header: of one of its files.
        low: the series in HU, (slices, rows, columns).
        rules: say which anatomy it is of.
        dose: that it is taken for, over full dose.
    """
    _, *pixel = series.geometry.spacing
    power = noise_power(low, (pixel[0], pixel[1]))
    return SeriesFacts(
        vendor=vendor_of(header.manufacturer),
        kernel=kernel_of("\\".join(series.kernels)),
        anatomy=cohort.anatomy(rules, header.patient_id, header.body_part),
        pixel=max(pixel),
        increment=series.geometry.spacing[0],
        thickness=series.thickness,
        matrix=max(series.rows, series.columns),
        noise=measured_noise(low),
        frequency=mean_frequency(power),
        spectrum=band_shares(power),
        highest=highest_hu(low),
        kvp=series.kvp,
        dose=dose,
    )
