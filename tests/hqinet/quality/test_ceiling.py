"""The best estimator has the whole ceiling; a clean image, which is not the full dose, less."""

import math

import pytest
import torch

from hqinet.quality.ceiling import dose_ceiling, share_of_ceiling


@pytest.mark.parametrize("dose", [0.1, 0.25, 0.5])
def test_the_optimum_and_the_clean_image(dose: float) -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.zeros(2, 128, 128)
    full = clean + 10 * torch.randn(clean.shape, generator=generator)
    added = 10 * math.sqrt(1 / dose - 1) * torch.randn(clean.shape, generator=generator)
    low = full + added
    body = torch.zeros(clean.shape, dtype=torch.bool)
    body[:, 20:100, 20:100] = True
    best = clean + dose * (low - clean)
    best[~body] = 1e6
    share = share_of_ceiling(low, best, full, body, dose)
    torch.testing.assert_close(share, torch.ones(2), rtol=0, atol=0.1)
    expected = 10 * math.log10(1 / dose - 1) / dose_ceiling(dose)
    share = share_of_ceiling(low, clean, full, body, dose)
    torch.testing.assert_close(share, torch.full((2,), expected), rtol=0, atol=0.1)
    assert share_of_ceiling(low, low, full, body, dose).tolist() == [0.0, 0.0]


def test_what_has_no_ceiling() -> None:
    image = torch.zeros(1, 8, 8)
    nobody = torch.zeros(1, 8, 8, dtype=torch.bool)
    assert share_of_ceiling(image + 1, image, image, nobody, 0.25).isnan().all()
    assert share_of_ceiling(image, image, image, ~nobody, 0.25).isnan().all()
    assert dose_ceiling(0.25) == pytest.approx(6.0206, abs=1e-4)
    with pytest.raises(ValueError, match="above 0 and below 1, not 1"):
        dose_ceiling(1.0)
