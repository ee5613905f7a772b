"""The observer against the closed form of noise whose covariance is known."""

import numpy as np
import pytest
from scipy.stats import norm

from hqinet.quality.detectability import (
    detect,
    difference_of_gaussians,
    laguerre_gauss,
    lesion,
)

SIZE, WIDTH, COUNT = 24, 9.0, 400


def images(signal: np.ndarray, sd: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, sd, (COUNT, SIZE, SIZE)) + signal


def gaussian(height: float) -> np.ndarray:
    """The signal that the first channel is made for."""
    channel = laguerre_gauss(SIZE, WIDTH, 1)[0].reshape(SIZE, SIZE)
    return height * channel


@pytest.mark.parametrize("distance", [0.5, 1.0, 2.0])
def test_in_white_noise_the_index_is_the_signals_norm_over_the_noise(distance: float) -> None:
    sd = 10.0
    channels = laguerre_gauss(SIZE, WIDTH)
    signal = gaussian(distance * sd)
    found = detect(images(signal, sd, 1), images(0 * signal, sd, 2), channels)
    assert found.index == pytest.approx(distance, abs=0.15)
    assert found.interval[0] < distance < found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.5
    assert found.auc == pytest.approx(norm.cdf(found.index / np.sqrt(2)))


def test_without_a_lesion_there_is_nothing_to_detect() -> None:
    found = detect(images(0, 10, 1), images(0, 10, 2), laguerre_gauss(SIZE, WIDTH))
    assert abs(found.index) < 0.2


def test_internal_noise_makes_the_observer_worse_by_what_it_adds() -> None:
    signal, channels = gaussian(15.0), laguerre_gauss(SIZE, WIDTH)
    kinds = images(signal, 10, 1), images(0 * signal, 10, 2)
    plain, noisy = (detect(*kinds, channels, internal_noise=n).index for n in (0.0, 1.0))
    # As much variance again in each channel, in white noise.
    assert noisy / plain == pytest.approx(1 / np.sqrt(2), rel=0.05)


def test_channels_are_orthonormal() -> None:
    channels = laguerre_gauss(64, 12.0)
    np.testing.assert_allclose(channels @ channels.T, np.eye(6), atol=1e-3)


@pytest.mark.parametrize("size", [64, 65])
def test_bands_are_differences_of_gaussians_in_frequency_and_round(size: int) -> None:
    narrow, _, wide = difference_of_gaussians(size).reshape(3, size, size)
    for channel in (narrow, wide):
        np.testing.assert_allclose(channel, channel.T, atol=1e-12)
        np.testing.assert_allclose(channel, channel[::-1], atol=1e-6)
    # The sum of a channel is what it makes of a flat image: nothing.
    assert abs(wide.sum()) < 1e-9
    step = 2 / size
    waves = np.cos(2 * np.pi * step * (np.arange(size) - (size - 1) / 2))
    expected = np.exp(-((step / 0.12) ** 2) / 2) - np.exp(-((step / 0.06) ** 2) / 2)
    assert (wide * waves).sum() == pytest.approx(expected, rel=1e-3)
    half = difference_of_gaussians(size, 0.5).reshape(3, size, size)[2]
    expected = np.exp(-((2 * step / 0.12) ** 2) / 2) - np.exp(-((2 * step / 0.06) ** 2) / 2)
    assert (half * waves).sum() == pytest.approx(expected, rel=1e-3)


def test_lesions_have_their_contrast_and_diameter() -> None:
    soft = lesion(81, 0.5, diameter=10.0, contrast=-30.0, edge=0.4)
    assert soft[40, 40] == pytest.approx(-30, rel=0.01)
    # Half of the contrast 5 mm from the middle.
    assert soft[40, 50] == pytest.approx(-15, rel=0.05)
    assert soft.sum() * 0.25 == pytest.approx(-30 * np.pi * 25, rel=0.03)


def test_too_few_images_are_refused() -> None:
    few = np.zeros((10, SIZE, SIZE))
    with pytest.raises(ValueError, match="the observer with 6 channels needs 24 of each"):
        detect(few, few, laguerre_gauss(SIZE, WIDTH))
