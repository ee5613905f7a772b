"""A scanner's image of a phantom: HU, noise by dose, repeatable."""

import pytest
import torch

from hqinet.physics.acquisition import Scan, acquire

SIZE, PIXEL = 96, 4.0


def disc(hu: float = 0.0) -> torch.Tensor:
    y, x = torch.meshgrid(*[torch.arange(SIZE) - (SIZE - 1) / 2] * 2, indexing="ij")
    return torch.where(torch.hypot(y, x) < 30, hu, -1000.0)[None]


def image(dose: float, seed: int = 0, photons: float = 1e5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scan = Scan(photons=photons, views=120)
    return acquire(disc(), pixel=PIXEL, dose=dose, scan=scan, generator=generator)


CENTRE = (0, slice(38, 58), slice(38, 58))


def test_water_reads_zero_hu():
    assert image(1.0, photons=1e9)[CENTRE].mean() == pytest.approx(0, abs=3)


def test_noise_follows_dose_as_its_inverse_root():
    clean = image(1.0, photons=1e9)
    quarter, full = ((image(dose) - clean)[CENTRE].std() for dose in (0.25, 1.0))
    assert quarter / full == pytest.approx(2, rel=0.25)


def test_a_seed_fixes_the_noise():
    assert torch.equal(image(0.5, seed=4), image(0.5, seed=4))
    assert not torch.equal(image(0.5, seed=4), image(0.5, seed=5))
