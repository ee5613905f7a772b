"""What was removed is noise, or the series must not be used."""

import re

import numpy as np
import pytest

from hqinet.quality.removal import RemovalLimits, judge_removal

LIMITS = RemovalLimits()
Y, X = np.mgrid[-1:1:160j, -1:1:160j]


def body() -> np.ndarray:
    hu = np.where(np.hypot(X, Y) < 0.85, 50.0, -1000.0) + np.zeros((6, 1, 1))
    hu[:, np.hypot(X - 0.4, Y) < 0.2] = -850
    hu[:, np.hypot(X + 0.4, Y) < 0.15] = 600
    return hu


@pytest.fixture(scope="module")
def low() -> np.ndarray:
    return (body() + np.random.default_rng(0).normal(0, 30, body().shape)).astype(np.int16)


def objections(low: np.ndarray, restored: np.ndarray) -> list[str]:
    return judge_removal(low, restored.round().astype(np.int16)).objections(LIMITS)


def test_noise_may_be_removed(low):
    assert objections(low, 0.8 * body() + 0.2 * low) == []
    assert objections(low, body()) == []


def test_a_model_that_returns_its_input_is_found_out(low):
    (said,) = objections(low, low)
    assert "does nothing here" in said


def test_a_shift_of_bone_is_found_out(low):
    restored = body()
    restored[restored > 300] += 40
    said = objections(low, restored)
    assert any(re.match(r"-[34]\d\.\d HU were removed from bone", line) for line in said)


def test_an_erased_lesion_is_found_out(low):
    lesion = np.hypot(X, Y + 0.5) < 0.09
    with_lesion = low.copy()
    with_lesion[3, lesion] += 80
    assert any("a region was changed" in said for said in objections(with_lesion, body()))


def test_a_blur_of_edges_is_found_out(low):
    from scipy.ndimage import gaussian_filter

    said = objections(low, gaussian_filter(low.astype(float), (0, 2.5, 2.5)))
    assert any("on edges" in line for line in said)


def test_slices_without_a_body_object_to_nothing():
    air = np.full((4, 64, 64), -1000, np.int16)
    assert judge_removal(air, air).objections(LIMITS) == []
