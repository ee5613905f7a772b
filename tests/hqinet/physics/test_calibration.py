"""A detector is found again from scans that were simulated with it."""

import numpy as np
import pytest

from hqinet.physics.calibration import CalibrationError, DosePair, calibrate
from hqinet.physics.dose_simulation import simulate_dose
from hqinet.physics.scanner import Detector, FullDose
from tests.hqinet.physics.test_dose_simulation import FEW_VIEWS, SIZE, cylinder

PHOTONS, ELECTRONIC = 2e5, 400.0


@pytest.fixture(scope="module")
def full() -> FullDose:
    """An ellipse of water, 26 by 15 cm: rays are weakened by very different amounts."""
    axis = np.arange(SIZE) - SIZE / 2
    outside = np.hypot(axis[:, None] / 38, axis / 66) > 1
    hu = np.where(outside, -1000, cylinder()).astype(np.int16)
    return FullDose(hu, 2.0, 3.0, 3.0, "B30f")


@pytest.fixture
def scan(full, monkeypatch):
    """The same scan at a fraction of its dose, by a detector that is known."""
    # What a scanner makes does not ask whether the series' own noise agrees with it.
    monkeypatch.setattr("hqinet.physics.dose_simulation.IMPLIED", (0.0, 100.0))

    def run(dose: float, detector: Detector) -> DosePair:
        made = simulate_dose(full, dose=dose, seed=7, detector=detector)
        return DosePair(full, made.low[0], dose)

    return run


def test_photons_electronic_noise_and_kernel_are_found(scan):
    known = Detector(photons=PHOTONS, electronic=ELECTRONIC, views=FEW_VIEWS.views)
    found = calibrate([scan(dose, known) for dose in (0.25, 0.1)], FEW_VIEWS)
    # So few regions leave a tenth of doubt to the kernel, whose square the photons pay for.
    assert found.detector.photons == pytest.approx(PHOTONS, rel=0.25)
    assert found.detector.electronic == pytest.approx(ELECTRONIC, rel=0.4)
    assert found.misfit < 0.15
    assert list(found.detector.kernels) == ["B30f"]


def test_without_electronic_noise_there_is_little(scan):
    found = calibrate(
        [scan(0.25, Detector(photons=PHOTONS, views=FEW_VIEWS.views))], FEW_VIEWS
    ).detector
    assert found.electronic < 0.2 * ELECTRONIC
    assert found.photons == pytest.approx(PHOTONS, rel=0.15)


def test_what_no_detector_explains_is_said():
    with pytest.raises(CalibrationError, match="no scan at two known doses"):
        calibrate([])
