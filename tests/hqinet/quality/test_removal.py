"""What was removed is noise, or the series must not be used."""

import re

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from hqinet.quality.noise_spectrum import mean_frequency
from hqinet.quality.removal import Removal, RemovalLimits, highest_hu, judge_removal, noise_power

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


@pytest.fixture(scope="module")
def interleaved() -> tuple[np.ndarray, np.ndarray]:
    """Muscle with fat in it, and what a scan at a very low dose shows of it."""
    random = np.random.default_rng(2)
    true = body()
    field = np.stack([gaussian_filter(random.normal(0, 1, X.shape), 6) for _ in true])
    soft = true == 50
    true[soft] = 20 + 25 * (field / field.std())[soft]
    noise = gaussian_filter(random.normal(0, 1, true.shape), (0, 0.8, 0.8))
    return true, (true + 40 * noise / noise.std()).round()


def test_strong_noise_feigns_no_bias(interleaved):
    # By what noise makes of them, pixels with noise above zero are soft tissue.
    true, low = interleaved
    assert objections(low, true) == []


def test_a_shift_of_soft_tissue_is_found_out_in_strong_noise(interleaved):
    true, low = interleaved
    shifted = np.where((true > -150) & (true < 200), true + 8, true)
    assert any("HU were removed from soft" in line for line in objections(low, shifted))


def test_more_bias_is_allowed_where_noise_feigns_it():
    def said(noise: float) -> list[str]:
        bias, taken = {"soft": 5.0, "bone": -8.0}, {"soft": 8.0, "bone": 0.0}
        removal = Removal(
            noise=noise,
            bias=bias,
            taken=taken,
            on_edges=1,
            structure=1,
            frequency=1,
            amount=0.7,
        )
        return removal.objections(LIMITS)

    assert said(100.0) == []
    assert said(20.0) == [
        "+5.0 HU were removed from soft, allowed 4.6",
        "+8.0 HU were removed from what was soft, allowed 7",
    ]


def test_a_shift_of_little_bone_is_found_out(low):
    bone = np.hypot(X + 0.1, Y + 0.4) < 0.07
    true, scanned = body(), low.copy()
    # Without the large bone; 0.3 % of the body's pixels lie well inside the small one.
    for volume in (true, scanned):
        volume[:, np.hypot(X + 0.4, Y) < 0.17] = volume[:, np.hypot(X, Y - 0.5) < 0.17].mean()
        volume[:, bone] += 550
    shifted = np.where(true > 300, true + 40, true)
    assert any("HU were removed from bone" in line for line in objections(scanned, shifted))


def test_half_of_a_tissue_moved_between_the_bins_is_missed(low):
    moved = body()
    moved[(moved == 50) & (X < 0)] = 160
    assert any("from what was soft" in line for line in objections(low, moved))


def test_slices_of_air_do_not_make_the_others_noiseless(low):
    air = np.full((7, *low.shape[1:]), -1000, np.int16)
    alone = judge_removal(low, body().astype(np.int16))
    padded = judge_removal(
        np.concatenate([low, air]), np.concatenate([body().astype(np.int16), air])
    )
    assert padded.noise == alone.noise


def test_a_tissue_that_was_taken_away_is_missed(low):
    emptied = body()
    emptied[emptied == -850] = -1000
    assert any("HU were removed from what was lung" in line for line in objections(low, emptied))


def test_an_erased_lesion_is_found_out(low):
    lesion = np.hypot(X, Y + 0.5) < 0.09
    with_lesion = low.copy()
    with_lesion[3, lesion] += 80
    assert any("a region was changed" in said for said in objections(with_lesion, body()))


def test_every_slice_is_judged():
    true = np.concatenate([body()] * 8)
    low = (true + np.random.default_rng(1).normal(0, 30, true.shape)).astype(np.int16)
    assert objections(low, true) == []
    low[21, np.hypot(X, Y + 0.5) < 0.09] += 80
    assert any("a region was changed" in said for said in objections(low, true))


def test_a_blur_of_edges_is_found_out(low):
    said = objections(low, gaussian_filter(low.astype(float), (0, 2.5, 2.5)))
    assert any("on edges" in line for line in said)


def test_a_field_of_low_frequency_is_found_out(low):
    random = np.random.default_rng(1)
    shading = np.stack([gaussian_filter(random.normal(0, 1, (160, 160)), 8) for _ in low])
    said = objections(low, low - 20 * shading / shading.std())
    assert any("mean frequency of what was removed" in line for line in said)


def frequency(volume, *spacing) -> float:
    return mean_frequency(noise_power(volume, *spacing))


def test_the_frequency_of_noise_and_the_highest_hu_are_measured(low):
    random = np.random.default_rng(2)
    noise = random.normal(0, 30, (6, 160, 160))
    fine, coarse = (
        (body() + 30 * (field / field.std())).astype(np.int16)
        for field in (noise, np.stack([gaussian_filter(one, 1.5) for one in noise]))
    )
    # White noise: rings of 1/32 to 16/32, weighted by their area.
    assert frequency(fine) == pytest.approx(11 / 32, abs=0.02)
    assert frequency(coarse) < 0.15
    assert frequency(fine, (0.5, 0.5)) == pytest.approx(2 * frequency(fine), rel=0.02)
    assert np.isnan(frequency(fine[:1]))
    assert highest_hu(low) == pytest.approx(670, abs=40)


def test_slices_without_a_body_object_to_nothing():
    air = np.full((4, 64, 64), -1000, np.int16)
    assert judge_removal(air, air).objections(LIMITS) == []
