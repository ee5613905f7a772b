"""Simulated low dose: its amount by the law, its texture and correlation those of the series."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hqinet.noise import noise_level
from hqinet.physics.dose_simulation import SimulationError, simulate_dose, slice_shares
from hqinet.physics.scanner import Detector, FullDose, line_integral_variance
from hqinet.physics.texture import Kernel, TextureError, series_kernel

SIZE, SLICES = 160, 5
OWN = 12.0
"""SD of the full dose's own noise, HU."""
FEW_VIEWS = Detector(views=180)
CENTRE = (slice(None), slice(60, 100), slice(60, 100))


def cylinder(softness: float = 0.8, seed: int = 0) -> np.ndarray:
    """Water with noise as back-projection makes it, of a kernel that blurs by so many pixels."""
    axis, frequency = np.arange(SIZE) - SIZE / 2, np.fft.fftfreq(SIZE)
    inside = np.hypot(axis[:, None], axis) < 65
    radius = np.hypot(frequency[:, None], frequency)
    response = np.sqrt(radius) * np.exp(-2 * (np.pi * softness * radius) ** 2)
    noise = np.random.default_rng(seed).standard_normal((SLICES, SIZE, SIZE))
    noise = np.fft.ifft2(np.fft.fft2(noise) * response).real
    noise *= OWN / noise.std()
    return np.where(inside, 20 + noise, -1000 + 0.2 * noise).round().astype(np.int16)


def series(softness: float = 0.8, thickness: float = 3.0, increment: float = 3.0) -> FullDose:
    return FullDose(cylinder(softness), 2.0, thickness, increment)


def added(full: FullDose, dose: float = 0.25, **options: object) -> np.ndarray:
    made = simulate_dose(full, dose=dose, seed=1, **{"detector": FEW_VIEWS, **options})
    return made.low.astype(float) - full.hu


@pytest.mark.parametrize("dose", [0.5, 0.25, 0.05])
def test_the_pair_implies_the_dose_that_it_states(dose: float) -> None:
    full = series()
    made = simulate_dose(full, dose=dose, seed=1, detector=FEW_VIEWS)
    # So small a body tells its noise level to some percent.
    assert made.implied == pytest.approx(dose, rel=0.15)
    levels = [noise_level(torch.from_numpy(v)) for v in (full.hu, made.low[0])]
    assert float((levels[0] / levels[1]).median()) ** 2 == pytest.approx(made.implied, rel=0.05)


def test_noise_grows_as_the_law_says() -> None:
    full = series()
    photons = simulate_dose(full, dose=0.25, seed=1, detector=FEW_VIEWS).photons
    fixed = replace(FEW_VIEWS, photons=photons)
    deviations = [added(full, dose, detector=fixed)[0][CENTRE].std() for dose in (0.3, 0.25, 0.2)]
    for deviation, dose in zip(deviations, (0.3, 0.25, 0.2), strict=True):
        assert deviation**2 / deviations[1] ** 2 == pytest.approx((1 / dose - 1) / 3, rel=0.01)


def mean_frequency(noise: np.ndarray) -> float:
    """Of square regions, power-weighted, cycles a pixel."""
    power = np.abs(np.fft.fft2(noise - noise.mean((-2, -1), keepdims=True))) ** 2
    axis = np.fft.fftfreq(noise.shape[-1])
    radius = np.hypot(axis[:, None], axis)
    return float((power.mean(0) * radius).sum() / power.mean(0).sum())


@pytest.mark.parametrize("softness", [0.5, 0.8, 1.4])
def test_texture_is_that_of_the_series(softness: float) -> None:
    full = series(softness)
    own = mean_frequency(full.hu[CENTRE].astype(float))
    assert mean_frequency(added(full)[0][CENTRE]) == pytest.approx(own, rel=0.1)


def test_no_bias() -> None:
    noise = added(series(), realisations=4)
    assert abs(noise[:, *CENTRE].mean()) < 0.5
    outside = noise[:, :, :12]
    # Air lies at the lowest HU there is: what falls below is cut off.
    assert abs(outside.mean()) < 0.5


def test_realisations_are_independent_and_seeds_repeat() -> None:
    full = series()
    noise = added(full, realisations=2)
    one, other = noise[0][CENTRE].ravel(), noise[1][CENTRE].ravel()
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.1
    assert np.array_equal(noise[0], added(full)[0])
    again = simulate_dose(full, dose=0.25, seed=2, detector=FEW_VIEWS).low[0]
    assert not np.array_equal(again, full.hu + noise[0])


@pytest.mark.parametrize(("thickness", "expected"), [(3.0, 0.0), (4.5, 1 / 3), (6.0, 0.5)])
def test_overlapping_slices_share_noise(thickness: float, expected: float) -> None:
    noise = added(series(thickness=thickness))[0][CENTRE]
    found = np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]
    assert found == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(("thickness", "increment"), [(1, 5), (2, 1), (5, 4.25), (1.25, 0.8)])
def test_shares_have_the_autocovariance_of_a_box_profile(
    thickness: float, increment: float
) -> None:
    shares = np.array(slice_shares(thickness, increment))
    found = np.correlate(shares, shares, "full")[len(shares) - 1 :]
    expected = np.clip(1 - np.arange(len(shares)) * increment / thickness, 0, 1)
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_what_implies_another_dose_is_refused_with_both_figures() -> None:
    with pytest.raises(SimulationError, match=r"imply a dose of 1\.00, not the stated 0\.25"):
        simulate_dose(series(), dose=0.25, seed=0, detector=replace(FEW_VIEWS, photons=1e9))
    with pytest.raises(ValueError, match="above 0 and below 1, not 1"):
        simulate_dose(series(), dose=1.0, seed=0)


def test_matrices_that_are_not_square_keep_their_shape() -> None:
    cropped = FullDose(cylinder()[:, 10:140, 20:150].copy(), 2.0, 3.0, 3.0)
    narrow = FullDose(cylinder()[:, :, 15:142].copy(), 2.0, 3.0, 3.0)
    assert added(cropped).shape == (1, SLICES, 130, 130)
    assert added(narrow).shape == (1, SLICES, 160, 127)


def test_variance_is_that_of_yu_et_al() -> None:
    integrals, photons = torch.tensor([0.0, 2.0, 5.0]), torch.tensor(1e4)
    found = line_integral_variance(integrals, dose=0.25, photons=photons, electronic=30.0)
    counts = 1e4 * np.exp(-integrals.double().numpy())
    # A count N has variance N + Ne, its logarithm that over N^2; the difference of both doses.
    low, full = 0.25 * counts, counts
    expected = (low + 30) / low**2 - (full + 30) / full**2
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_electronic_noise_weighs_where_few_photons_pass() -> None:
    plain = added(series())[0]
    electronic = added(series(), detector=replace(FEW_VIEWS, electronic=2e5))[0]
    edge = (slice(None), slice(72, 88), slice(20, 30))

    def ratio(noise: np.ndarray) -> float:
        return noise[CENTRE].std() / noise[edge].std()

    assert ratio(electronic) > 1.03 * ratio(plain)


def test_fewer_photons_at_the_edge_of_the_bowtie_make_noise_there() -> None:
    edge = (slice(None), slice(72, 88), slice(18, 28))

    def ratio(noise: np.ndarray) -> float:
        return noise[edge].std() / noise[CENTRE].std()

    plain = ratio(added(series())[0])
    bowtie = ratio(
        added(series(), detector=replace(FEW_VIEWS, bowtie=(0.01, 0.01, 1.0, 0.01, 0.01)))[0]
    )
    assert bowtie > 1.2 * plain


def test_tube_current_that_falls_from_the_side_makes_streaks_from_there() -> None:
    """Rays along the rows (view 90 degrees) with fewer photons: noise varies from row to row."""
    current = (1.0, 0.05, 1.0)
    plain, modulated = (
        added(series(), detector=replace(FEW_VIEWS, tube_current=values))[0][CENTRE]
        for values in ((1.0, 1.0), current)
    )

    def anisotropy(noise: np.ndarray) -> float:
        power = (np.abs(np.fft.fft2(noise)) ** 2).mean(0)
        return float(power[3:12, 0].sum() / power[0, 3:12].sum())

    assert anisotropy(modulated) > 2 * anisotropy(plain)


def test_a_series_without_a_body_is_refused() -> None:
    with pytest.raises(TextureError, match="no region of 32x32 pixels lies in the body"):
        series_kernel(torch.full((3, 64, 64), -1000, dtype=torch.int16), 1.0)


def test_a_kernel_that_is_known_makes_its_own_texture() -> None:
    """A series of a soft kernel, told to be of a sharp one, and the other way round."""
    step = 1 / 64
    frequency = np.arange(17) * step * 2.0
    sharp, soft = (
        Kernel(tuple(np.exp(-((np.pi * s * frequency) ** 2)).tolist()), step) for s in (0.5, 1.4)
    )
    names = replace(FEW_VIEWS, kernels={"sharp": sharp, "soft": soft})
    told = {
        name: mean_frequency(added(replace(series(), kernel=name), detector=names)[0][CENTRE])
        for name in ("sharp", "soft", "neither")
    }
    assert told["soft"] < told["neither"] < told["sharp"]
    assert told["neither"] == pytest.approx(mean_frequency(added(series())[0][CENTRE]))


def test_a_single_slice_gets_a_partner_too() -> None:
    one = FullDose(cylinder()[:1].copy(), 2.0, 3.0, 3.0)
    assert simulate_dose(one, dose=0.25, seed=0, detector=FEW_VIEWS).implied == pytest.approx(
        0.25, rel=0.2
    )
