"""The noise estimate on noise that is known."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from hqinet.noise import BODY_HU, FLOOR_HU, noise_level


def body_with_noise(sd: float, seed: int = 0, size: int = 320) -> np.ndarray:
    """A water disc with a bone in air, white noise inside the disc alone."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    hu = np.where(x**2 + y**2 < 0.7, 40.0, -1000.0)
    hu[(x - 0.2) ** 2 + y**2 < 0.02] = 900
    noise = np.random.default_rng(seed).normal(0, sd, hu.shape)
    return np.where(hu > BODY_HU, hu + noise, hu).astype(np.float32)


@pytest.mark.parametrize("sd", [5.0, 20.0, 90.0])
def test_white_noise_is_measured_inside_the_body(sd: float) -> None:
    stack = np.stack([body_with_noise(sd, seed) for seed in range(3)])
    levels = noise_level(torch.from_numpy(stack))
    np.testing.assert_allclose(levels.numpy(), sd, rtol=0.08)


def test_correlated_noise_is_not_missed() -> None:
    """Noise of neighbours correlated as after a soft kernel: more than half of its SD is seen."""
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(256, 256)), 1.0)
    noise *= 30 / noise.std()
    assert 15 < noise_level(torch.from_numpy(noise)[None]).item() < 60


@given(factor=st.floats(2, 20), offset=st.floats(-300, 500), seed=st.integers(0, 9))
def test_follows_the_noise_and_not_the_level(factor: float, offset: float, seed: int) -> None:
    noise = torch.from_numpy(np.random.default_rng(seed).normal(0, 5, (1, 48, 48)))
    base = noise_level(noise).item()
    assert noise_level(noise * factor + offset).item() == pytest.approx(base * factor, rel=1e-3)


def test_each_slice_has_its_own() -> None:
    stack = torch.from_numpy(np.stack([body_with_noise(sd) for sd in (5, 50)]))
    together = noise_level(stack)
    alone = torch.cat([noise_level(stack[i : i + 1]) for i in range(2)])
    assert torch.equal(together, alone)
    assert together[1] > 5 * together[0]


def test_integers_and_floats_agree() -> None:
    hu = torch.from_numpy(body_with_noise(20).round())[None]
    assert torch.equal(noise_level(hu.short()), noise_level(hu))


def test_a_slice_without_body_or_noise_still_has_a_level() -> None:
    flat = torch.full((1, 32, 32), -1024.0)
    assert noise_level(flat).item() == FLOOR_HU
    airy = flat + torch.from_numpy(np.random.default_rng(0).normal(0, 30, (1, 32, 32)))
    assert noise_level(airy).item() == pytest.approx(30, rel=0.2)
