"""Where a delivery and the physics meet."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from flows.compute.dose_simulation import simulate_partner, with_version
from hqinet.physics.dose_simulation import VERSION
from storage.ingest.simulation import DetectorRules, KernelCurve, SimulationRules
from storage.refusals import Refusal


def pair(dose: float = 0.25, seed: int = 0, **rules: Any) -> Any:
    geometry = SimpleNamespace(spacing=(3.0, 2.0, 2.0))
    full = SimpleNamespace(series=SimpleNamespace(geometry=geometry, thickness=None), kernel="B30f")
    simulation = SimulationRules(dose=dose, seed=seed, **rules)
    return SimpleNamespace(patient="P", full=full, dose_fraction=dose, simulation=simulation)


def cylinder() -> np.ndarray:
    axis = np.arange(96) - 48
    inside = np.hypot(axis[:, None], axis) < 42
    noise = gaussian_filter(np.random.default_rng(0).normal(0, 30, (3, 96, 96)), (0, 0.8, 0.8))
    return np.where(inside, 20 + noise, -1000).round().astype(np.int16)


def test_a_partner_says_what_it_was_made_with():
    hu = cylinder()
    made = simulate_partner(hu, pair(seed=5))
    assert made.hu.shape == (1, *hu.shape)
    assert made.hu.dtype == np.int16
    assert "0.25 of the full dose" in made.shown
    assert "seed 5" in made.shown
    assert made.parameters["implied_dose"] == pytest.approx(0.25, rel=0.2)
    assert made.note.startswith("simulated dose: 0.25 of the full dose, 0.2")
    again = simulate_partner(hu, pair(seed=5))
    assert np.array_equal(made.hu, again.hu)


def test_what_the_physics_refuses_is_a_refusal():
    air = np.full((2, 96, 96), -1000, np.int16)
    with pytest.raises(Refusal, match="simulation_failed: simulated dose: no region"):
        simulate_partner(air, pair())


def test_the_rules_name_the_simulator():
    assert with_version(SimulationRules(dose=0.25, version=0)).version == VERSION


def test_realisations_and_a_detector_are_as_asked_for_and_said():
    curve = KernelCurve(mtf=(1.0, 0.6, 0.1), step=0.1)
    detector = DetectorRules(kernels={"B30f": curve})
    made = simulate_partner(cylinder(), pair(realisations=2, detector=detector))
    assert made.hu.shape == (2, 3, 96, 96)
    assert made.parameters["mtf"] == [1.0, 0.6, 0.1]
    assert made.shown.endswith("detector file, 2 realisations")
    with pytest.raises(Refusal, match=r"would imply a dose of 1\.00, not the stated 0.25"):
        simulate_partner(cylinder(), pair(detector=DetectorRules(photons=1e12)))
