"""Projections against closed forms and scikit-image; reconstruction returns what was projected."""

import math

import pytest
import torch
from skimage.transform import radon

from hqinet.physics.projection import ParallelBeam, back_project, frequencies, project, ramp

BEAM = ParallelBeam(128, 180)
WIDTH = 2.5
"""SD of Gaussian blobs, pixels: their projections are Gaussians too."""


def axes(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    axis = torch.arange(size) - size // 2
    return torch.meshgrid(axis, axis, indexing="ij")


def blob(y0: float, x0: float, size: int = 128, width: float = WIDTH) -> torch.Tensor:
    y, x = axes(size)
    return torch.exp(-((y - y0) ** 2 + (x - x0) ** 2) / (2 * width**2))


def blobs_projection(y0: float, x0: float, beam: ParallelBeam) -> torch.Tensor:
    angle = torch.arange(beam.views) * (math.pi / beam.views)
    middle = x0 * torch.cos(angle) + y0 * torch.sin(angle)
    distance = torch.arange(beam.bins) - beam.bins // 2 - middle[:, None]
    return math.sqrt(2 * math.pi) * WIDTH * torch.exp(-(distance**2) / (2 * WIDTH**2))


@pytest.mark.parametrize("place", [(0, 0), (30, -12), (-44, 41)])
def test_projections_of_a_gaussian_are_gaussians(place: tuple[int, int]) -> None:
    found = project(blob(*place)[None], BEAM)[0]
    expected = blobs_projection(*place, BEAM)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.005 * float(expected.max()))


@pytest.mark.parametrize("size", [65, 96])
def test_projections_are_those_of_scikit_image(size: int) -> None:
    beam = ParallelBeam(size, 12)
    image = blob(9, -14, size, width=4) + 0.5 * blob(-20, 4, size, width=6)
    theirs = radon(
        image.double().numpy(), theta=[-15 * i for i in range(12)], circle=False
    )  # scikit-image turns the other way
    found = project(image[None], beam)[0]
    first = beam.bins // 2 - theirs.shape[0] // 2
    ours = found[:, first : first + theirs.shape[0]].T
    assert abs(ours.numpy() - theirs).max() < 0.005 * theirs.max()


def test_reconstruction_returns_what_was_projected_batched() -> None:
    images = torch.stack([blob(20, 10), blob(-31, 22) - 0.5 * blob(0, -20, width=8)])
    restored = back_project(project(images, BEAM), BEAM, ramp(BEAM))
    torch.testing.assert_close(restored, images, rtol=0, atol=0.003)
    torch.testing.assert_close(
        restored[1:], back_project(project(images[1:], BEAM), BEAM, ramp(BEAM))
    )


def test_back_projection_is_the_adjoint_of_projection() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 64, 64, generator=generator)
    beam = ParallelBeam(64, 90)
    lines = torch.randn(1, 90, beam.bins, generator=generator)
    one = (project(image, beam) * lines).sum()
    flat = torch.ones_like(frequencies(beam))
    other = (image * back_project(lines, beam, flat)).sum() * beam.views / math.pi
    assert float(one) == pytest.approx(float(other), rel=1e-4)


def test_the_ramp_is_the_frequency_without_an_offset() -> None:
    response = ramp(BEAM)
    torch.testing.assert_close(response, frequencies(BEAM), rtol=0, atol=2e-3)
    assert response[0] > 0


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"images are \(64, 64\), the beam is of 128"):
        project(torch.zeros(1, 64, 64), BEAM)
