"""A detector file is made of a dataset's pairs, and is what `ingest --detector` reads."""

from types import SimpleNamespace
from typing import Any

import pytest

from flows.compute.calibration import calibrate_on, detector_file
from hqinet.physics.calibration import Calibration
from hqinet.physics.dose_simulation import simulate_dose
from hqinet.physics.scanner import Detector, FullDose
from hqinet.physics.texture import Kernel
from storage.errors import DatasetError
from storage.ingest.simulation import KernelCurve, read_detector_file
from tests.flows.compute.test_dose_simulation import cylinder


def row(patient: str, **other: Any) -> SimpleNamespace:
    values = {"simulated": None, "dose_fraction": 0.25, "kernel": "B30f"} | other
    return SimpleNamespace(patient=patient, slices=3, spacing=(3.0, 2.0, 2.0), **values)


@pytest.fixture(scope="module")
def snapshot() -> Any:
    """Two patients whose detector can be told, and two of whom it cannot."""
    hu = cylinder()
    made = simulate_dose(FullDose(hu, 2.0, 3.0, 3.0), dose=0.25, seed=1)
    volume = SimpleNamespace(full=hu, low=made.low[0])
    rows = [row("L001"), row("L002", kernel=None)]
    rows += [row("L003", simulated="a quarter"), row("L004", dose_fraction=None)]
    return SimpleNamespace(
        commit=3, patients=lambda: rows, volume=lambda _: volume, photons=made.photons
    )


def test_patients_of_stated_and_delivered_dose_are_measured(snapshot):
    found = calibrate_on(snapshot, ["L001"])
    assert found.detector.photons == pytest.approx(snapshot.photons, rel=0.4)
    assert list(found.detector.kernels) == ["B30f"]
    assert list(calibrate_on(snapshot, []).detector.kernels) == ["B30f"]


@pytest.mark.parametrize(
    ("patient", "says"),
    [("L009", "not in commit 3"), ("L003", "is simulated"), ("L004", "is not stated")],
)
def test_who_tells_nothing_is_named(snapshot, patient, says):
    with pytest.raises(DatasetError, match=f"{patient}.*{says}"):
        calibrate_on(snapshot, [patient])


def test_a_detector_file_is_read_as_it_was_written(tmp_path):
    kernels = {"B30f": Kernel((1.0, 0.5, 0.25), 0.05), "D45f": Kernel((1.0, 1.25), 0.05)}
    found = Calibration(Detector(2e5, 300.0, kernels=kernels), 0.05)
    file = tmp_path / "detector.toml"
    file.write_text(detector_file(found, "L001"))
    rules = read_detector_file(file)
    assert (rules.photons, rules.electronic) == (2e5, 300.0)
    assert rules.kernels["D45f"] == KernelCurve(mtf=(1.0, 1.25), step=0.05)
