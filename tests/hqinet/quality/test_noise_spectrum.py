from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage

from hqinet.quality.noise_spectrum import (
    BANDS,
    REGION,
    SMALL_REGION,
    NoisePower,
    NoisePowerMeter,
    band_shares,
    mean_frequency,
    peak_frequency,
    spectral_distance,
)

SPACING = (0.7, 0.7)


def measured(residual: torch.Tensor, body: torch.Tensor | None = None):
    meter = NoisePowerMeter(residual.shape[1:], SPACING)
    inside = torch.ones(residual.shape, dtype=torch.bool) if body is None else body
    for half in (slice(0, 4), slice(4, 8)):
        meter.add(residual[half], inside[half])
    return meter.result()


def white(sd: float) -> torch.Tensor:
    return torch.randn(8, 256, 256, generator=torch.Generator().manual_seed(0)) * sd


def test_white_noise_is_flat_at_variance_times_pixel_area():
    power = measured(white(20.0))
    assert power.regions == 8 * (2 * 256 // REGION - 1) ** 2
    assert np.array(power.power) == pytest.approx(20**2 * 0.7 * 0.7, rel=0.15)
    assert power.frequency[-1] == pytest.approx(1 / (2 * 0.7))


def test_smoothing_takes_high_frequencies():
    smooth = torch.from_numpy(ndimage.gaussian_filter(white(20.0).numpy(), (0, 1.5, 1.5)))
    power = measured(smooth).power
    assert power[0] > 50 * power[-1]


def test_only_regions_inside_the_body_count():
    body = torch.zeros(8, 256, 256, dtype=torch.bool)
    assert measured(white(1.0), body).regions == 0
    body[:, :REGION, : 2 * REGION] = True
    assert measured(white(1.0), body).regions == 8 * 3


def test_small_matrices_have_smaller_regions():
    power = measured(white(5.0)[:, :64, :100])
    assert len(power.power) == SMALL_REGION // 2
    assert np.array(power.power) == pytest.approx(25 * 0.7 * 0.7, rel=0.25)


def spectrum_of(sigma: float, seed: int = 0, factor: float = 1.0) -> NoisePower:
    noise = np.random.default_rng(seed).normal(0, factor, (8, 96, 96))
    noise = torch.from_numpy(ndimage.gaussian_filter(noise, (0, sigma, sigma))).float()
    meter = NoisePowerMeter((512, 512), (0.5, 0.5))
    meter.add(noise, torch.ones(noise.shape, dtype=torch.bool))
    return meter.result()


def test_texture_has_a_mean_and_a_peak_and_a_distance() -> None:
    white, soft = spectrum_of(0), spectrum_of(0.8)
    # Of white noise over the disc up to 1/mm: two thirds of it.
    assert mean_frequency(white) == pytest.approx(2 / 3, rel=0.04)
    # Blurred by a Gaussian: f exp(-4 pi^2 s^2 f^2) has the mean sqrt(pi) / (4 pi s), s = 0.4 mm.
    assert mean_frequency(soft) == pytest.approx(np.sqrt(np.pi) / (4 * np.pi * 0.4), rel=0.1)
    assert peak_frequency(soft) < 0.3
    assert spectral_distance(white, spectrum_of(0, seed=1, factor=7.0)) < 0.05
    assert 0.3 < spectral_distance(white, soft) < 1
    assert spectral_distance(white, soft) == spectral_distance(soft, white)


def test_what_has_no_texture() -> None:
    nothing = NoisePower((), (), 0)
    assert np.isnan(mean_frequency(nothing))
    assert np.isnan(peak_frequency(nothing))
    assert np.isnan(spectral_distance(nothing, nothing))
    with pytest.raises(ValueError, match="different frequencies"):
        spectral_distance(nothing, spectrum_of(0))


@pytest.mark.parametrize("spacing", [0.5, 0.7, 0.9])
def test_bands_have_the_shares_of_white_noise_whatever_the_pixel(spacing):
    frequency = np.arange(1, 17) / (32 * spacing)
    shares = band_shares(NoisePower(tuple(frequency), (1.0,) * 16, 9))
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    # Of white noise a band has the area of its ring, up to the Nyquist frequency.
    nyquist = 0.5 / spacing
    rings = [(min(high, nyquist) ** 2 - min(low, nyquist) ** 2) for low, high in pairwise(BANDS)]
    assert shares == pytest.approx([ring / nyquist**2 for ring in rings], abs=0.07)
    assert band_shares(NoisePower((), (), 0)) is None
