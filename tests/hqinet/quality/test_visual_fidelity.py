"""VIF against the published algorithm, written again in NumPy."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d

from hqinet.quality.visual_fidelity import visual_fidelity


def published(reference: np.ndarray, distorted: np.ndarray) -> float:
    """`vifp_mscale.m` of the authors, line by line."""
    seen = there = 0.0
    for scale in range(1, 5):
        n = 2 ** (4 - scale + 1) + 1
        axis = np.arange(n) - (n - 1) / 2
        window = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * (n / 5) ** 2))
        window /= window.sum()

        def blur(image: np.ndarray, window: np.ndarray = window) -> np.ndarray:
            return convolve2d(image, window, mode="valid")

        if scale > 1:
            reference, distorted = blur(reference)[::2, ::2], blur(distorted)[::2, ::2]
        mu1, mu2 = blur(reference), blur(distorted)
        sigma1_sq = np.maximum(blur(reference**2) - mu1**2, 0)
        sigma2_sq = np.maximum(blur(distorted**2) - mu2**2, 0)
        sigma12 = blur(reference * distorted) - mu1 * mu2
        g = sigma12 / (sigma1_sq + 1e-10)
        sv_sq = sigma2_sq - g * sigma12
        g[sigma1_sq < 1e-10] = 0
        sv_sq[sigma1_sq < 1e-10] = sigma2_sq[sigma1_sq < 1e-10]
        sigma1_sq[sigma1_sq < 1e-10] = 0
        g[sigma2_sq < 1e-10] = 0
        sv_sq[sigma2_sq < 1e-10] = 0
        sv_sq[g < 0] = sigma2_sq[g < 0]
        g[g < 0] = 0
        sv_sq[sv_sq <= 1e-10] = 1e-10
        seen += np.sum(np.log10(1 + g**2 * sigma1_sq / (sv_sq + 2)))
        there += np.sum(np.log10(1 + sigma1_sq / 2))
    return seen / there


def pictures() -> tuple[np.ndarray, list[np.ndarray]]:
    random = np.random.default_rng(0)
    reference = 128 + 400 * gaussian_filter(random.standard_normal((96, 80)), 3)
    noisy = reference + random.normal(0, 15, reference.shape)
    half = reference.copy()
    half[:40] = 100
    return reference, [noisy, gaussian_filter(reference, 2), 255 - reference, half]


def test_equals_the_published_algorithm() -> None:
    reference, others = pictures()
    found = visual_fidelity(
        torch.from_numpy(np.stack(others)), torch.from_numpy(np.stack([reference] * 4))
    )
    expected = [published(reference, other) for other in others]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert 0 < found[0] < 1
    assert 0 < found[1] < 1


def test_equal_images_hold_everything_and_more_contrast_more() -> None:
    reference = torch.from_numpy(pictures()[0])[None]
    assert float(visual_fidelity(reference, reference)) == pytest.approx(1)
    mean = reference.mean()
    assert float(visual_fidelity(mean + 1.3 * (reference - mean), reference)) > 1


def test_what_cannot_be_judged() -> None:
    flat = torch.full((1, 64, 64), 9.0)
    assert visual_fidelity(flat + 1, flat).isnan().all()
    with pytest.raises(ValueError, match=r"41x41 pixels or more, not \(40, 64\)"):
        visual_fidelity(flat[:, :40], flat[:, :40])
