"""A fan's rays are parallel rays, found by their angle and distance."""

import math

import pytest
import torch

from hqinet.physics.fan_beam import FanBeam, fan_from_parallel, parallel_from_fan
from hqinet.physics.projection import ParallelBeam, back_project, project, ramp
from tests.hqinet.physics.test_projection import WIDTH, blob

PARALLEL = ParallelBeam(128, 360)
FAN = FanBeam(views=720, channels=400, radius=220.0, fan=1.0)


def test_fan_projections_of_a_gaussian() -> None:
    y0, x0 = 30, -12
    found = fan_from_parallel(project(blob(y0, x0)[None], PARALLEL), PARALLEL, FAN)[0]
    angle = FAN.fan_angles()
    view = FAN.source_angles()[:, None] + angle
    distance = FAN.radius * torch.sin(angle) - x0 * torch.cos(view) - y0 * torch.sin(view)
    height = math.sqrt(2 * math.pi) * WIDTH
    expected = height * torch.exp(-(distance**2) / (2 * WIDTH**2))
    assert float((found - expected).abs().max()) < 0.02 * height


def test_rebinned_to_parallel_and_reconstructed() -> None:
    image = (blob(30, -12) + 0.5 * blob(-20, 25, width=6))[None]
    fan = fan_from_parallel(project(image, PARALLEL), PARALLEL, FAN)
    restored = back_project(parallel_from_fan(fan, FAN, PARALLEL), PARALLEL, ramp(PARALLEL))
    assert float((restored - image).abs().max()) < 0.02


def test_a_source_inside_the_detectors_reach_is_refused() -> None:
    with pytest.raises(ValueError, match="80 pixels from the middle"):
        parallel_from_fan(torch.zeros(1, 720, 400), FanBeam(720, 400, 80.0, 1.0), PARALLEL)
