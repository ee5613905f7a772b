"""Edges of known contrast and blur."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from hqinet.quality.edge_response import edge_profiles, relative_sharpness

SIZE = 200


def disc(inside: float, outside: float, blur: float) -> torch.Tensor:
    axis = np.arange(SIZE) - SIZE / 2
    image = np.where(np.hypot(axis[:, None], axis) < 50, inside, outside)
    return torch.from_numpy(gaussian_filter(image, blur)).float()


BODY = torch.ones(SIZE, SIZE, dtype=torch.bool)


@pytest.mark.parametrize(
    ("kind", "inside", "outside"),
    [("soft", 120.0, 40.0), ("bone", 500.0, 40.0), ("lung", 20.0, -800.0)],
)
def test_slopes_are_as_the_inverse_of_the_blur(kind: str, inside: float, outside: float) -> None:
    sharp, soft = disc(inside, outside, 1.0), disc(inside, outside, 2.0)
    of_soft, of_sharp, edges = edge_profiles(soft, sharp, BODY, kind)
    assert edges > 40
    assert relative_sharpness(of_soft, of_sharp) == pytest.approx(0.5, abs=0.07)
    for profile in (of_soft, of_sharp):
        assert profile[0] == pytest.approx(0, abs=0.02)
        assert profile[-1] == pytest.approx(1, abs=0.02)
    same, itself, _ = edge_profiles(sharp, sharp, BODY, kind)
    assert relative_sharpness(same, itself) == 1


def test_edges_of_other_contrast_do_not_count() -> None:
    image = disc(500.0, 40.0, 1.0)
    profile, _, edges = edge_profiles(image, image, BODY, "soft")
    assert edges == 0
    assert np.isnan(profile).all()
    assert edge_profiles(image, image, ~BODY, "bone")[2] == 0
