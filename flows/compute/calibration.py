"""Pairs of a dataset, delivered at known doses -> the detector file of their scanner."""

from collections.abc import Sequence

import numpy as np

from hqinet.physics.calibration import Calibration, DosePair, calibrate
from hqinet.physics.scanner import FullDose
from storage.dataset.rows import Accepted
from storage.dataset.versions import Snapshot
from storage.errors import DatasetError


def calibrate_on(snapshot: Snapshot, patients: Sequence[str]) -> Calibration:
    """Fit a detector to pairs that were delivered with a stated dose.

    Args:
        patients: who was scanned alike; all such patients if empty.

    Raises:
        DatasetError: a patient is not in the commit, or their pair tells nothing of a detector.
        CalibrationError, TextureError: no detector fits.
    """
    rows = {row.patient: row for row in snapshot.patients()}
    for patient in patients:
        if patient not in rows:
            raise DatasetError(
                f"patient {patient!r} is not in commit {snapshot.commit}; "
                "`hqinet dataset show` lists who is"
            )
        if not _known(rows[patient]):
            raise DatasetError(
                f"patient {patient}: the low dose is "
                f"{'simulated' if rows[patient].simulated else 'not stated'}: a detector is told "
                "from low doses that were delivered and stated (`dose_fraction` in a cohort file)"
            )
    chosen = [rows[patient] for patient in patients] or [r for r in rows.values() if _known(r)]
    return calibrate([_scan(snapshot, row) for row in chosen])


def detector_file(calibration: Calibration, patients: str) -> str:
    """The text of a detector file (TOML)."""
    detector = calibration.detector
    lines = [
        f"# Measured on {patients}; the fit is off by {calibration.misfit:.0%} of the variance.",
        f"photons = {detector.photons:.6g}",
        f"electronic = {detector.electronic:.6g}",
    ]
    for name, kernel in detector.kernels.items():
        mtf = ", ".join(f"{value:.4f}" for value in kernel.mtf)
        lines += ["", f'[kernels."{name}"]', f"mtf = [{mtf}]", f"step = {kernel.step:.6g}"]
    return "\n".join(lines) + "\n"


def _known(row: Accepted) -> bool:
    return row.simulated is None and row.dose_fraction is not None


def _scan(snapshot: Snapshot, row: Accepted) -> DosePair:
    if row.dose_fraction is None:
        raise ValueError(f"{row.patient}: no dose is stated")
    volume, (increment, *pixel) = snapshot.volume(row.patient), row.spacing
    hu = volume.full[0 : row.slices]
    full = FullDose(hu, float(np.mean(pixel)), increment, increment, row.kernel)
    return DosePair(full, volume.low[0 : row.slices], row.dose_fraction)
