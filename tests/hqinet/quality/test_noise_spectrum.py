import numpy as np
import pytest
import torch
from scipy import ndimage

from hqinet.quality.noise_spectrum import REGION, SMALL_REGION, NoisePowerMeter

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
