"""SSIM against scikit-image, and every part of the loss by hand."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from hqinet.intensity import HU_RANGE, normalise
from hqinet.training.losses import restoration_loss, ssim
from hqinet.training.recipe import LossRecipe


def images(n: int = 3, rows: int = 40, columns: int = 37) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 1, rows, columns, generator=generator)
    return x, (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("data_range", [1.0, 0.25, 400.0])
def test_ssim_is_scikit_images(data_range: float) -> None:
    x, y = images()
    ours = ssim(x * data_range, y * data_range, data_range=data_range)
    for one, a, b in zip(ours.tolist(), x[:, 0].double(), y[:, 0].double(), strict=True):
        _, picture = structural_similarity(
            a.numpy() * data_range,
            b.numpy() * data_range,
            data_range=data_range,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        # Where the window lies inside; scikit-image averages less a border of (11 - 1) / 2 too.
        assert one == pytest.approx(picture[5:-5, 5:-5].mean(), abs=1e-4)


def test_ssim_stays_in_float32_under_autocast() -> None:
    x, y = images()
    with torch.autocast("cpu", torch.bfloat16):
        inside = ssim(x, y)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, ssim(x, y))


def test_ssim_of_equal_images_is_one_and_small_ones_are_refused() -> None:
    x, _ = images()
    torch.testing.assert_close(ssim(x, x), torch.ones(3))
    with pytest.raises(ValueError, match=r"11x11 pixels, got \(40, 10\)"):
        ssim(x[..., :10], x[..., :10])


def test_paper_loss_is_085_l1_and_015_ssim() -> None:
    x, y = images()
    loss = restoration_loss(LossRecipe(l1=0.85, ssim=0.15), x, y, torch.ones(3))
    expected = 0.85 * (x - y).abs().mean((1, 2, 3)) + 0.15 * (1 - ssim(x, y))
    torch.testing.assert_close(loss, expected)


def test_errors_count_in_units_of_each_slices_noise() -> None:
    x, y = images()
    noise = torch.tensor([0.01, 0.02, 0.04])
    per_noise = restoration_loss(LossRecipe(l1=1, per_noise=True), x, y, noise)
    plain = restoration_loss(LossRecipe(l1=1), x, y, noise)
    torch.testing.assert_close(per_noise, plain / noise)
    squared = restoration_loss(LossRecipe(mse=2, per_noise=True), x, y, noise)
    torch.testing.assert_close(squared, 2 * (x - y).square().mean((1, 2, 3)) / noise**2)


def test_window_clips_both_and_counts_in_window_widths() -> None:
    hu = torch.tensor([[-400.0, -100.0, 40.0, 300.0]]).view(1, 1, 1, 4)
    full = torch.tensor([[-900.0, -50.0, 140.0, 200.0]]).view(1, 1, 1, 4)
    recipe = LossRecipe(l1=1, window=(40, 400))
    noise = torch.tensor([20 / HU_RANGE])
    loss = restoration_loss(recipe, normalise(hu), normalise(full), noise)
    # Clipped to [-160, 239]: errors of 0, 50, 100 and 39 HU.
    assert loss.item() == pytest.approx(189 / 4 / 399, rel=1e-4)
    in_noise = restoration_loss(
        recipe.model_copy(update={"per_noise": True}),
        normalise(hu),
        normalise(full),
        noise,
    )
    assert in_noise.item() == pytest.approx(189 / 4 / 20, rel=1e-4)


def test_loss_of_bf16_images_is_float32() -> None:
    x, y = images()
    loss = restoration_loss(LossRecipe(l1=1, ssim=1), x.bfloat16(), y, torch.ones(3))
    assert loss.dtype == torch.float32
    assert np.isfinite(loss.numpy()).all()
