"""What dose the noise of a pair implies, and when a reader is told."""

import numpy as np
import pytest
import torch

from hqinet.noise import noise_level as on_the_device
from storage.ingest.implied_dose import doubt, implied_dose, noise_level


def slices(noise: float, seed: int, count: int = 9) -> np.ndarray:
    random = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:90j, -1:1:71j]
    hu = np.where(np.hypot(x, y) < 0.8, 40.0, -1000.0) + np.zeros((count, 1, 1))
    return (hu + random.normal(0, noise, hu.shape)).round().astype(np.int16)


def test_the_level_is_that_of_the_network():
    hu = slices(25, 0)
    expected = on_the_device(torch.from_numpy(hu))
    assert [noise_level(one) for one in hu] == pytest.approx(expected.tolist(), rel=0.01)


@pytest.mark.parametrize("dose", [0.1, 0.25, 0.5])
def test_the_variance_of_noise_is_inverse_to_dose(dose):
    low, full = slices(30 / dose**0.5, 1), slices(30, 2)
    assert implied_dose(low, full, 0.8) == pytest.approx(dose, rel=0.1)
    assert implied_dose(low, full, 2.7) is None, "anatomy counts as noise"


def test_air_implies_nothing():
    air = np.full((3, 40, 40), -1000, np.int16)
    assert implied_dose(air, air, 0.8) is None
    assert not doubt(0.25, None)


def test_a_reader_is_told_beyond_a_factor_and_which_of_both_counts():
    assert not doubt(0.25, 0.39)
    assert not doubt(0.25, 0.16)
    assert not doubt(None, 0.9)
    assert "implies a dose of 0.5, not the stated 0.25, which training" in doubt(0.25, 0.5)
    assert doubt(0.25, 0.15)
