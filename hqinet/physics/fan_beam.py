"""Fan-beam projections, made from parallel ones and rebinned to them (Kak & Slaney, section 3.4).

A ray of the fan is a ray of a parallel beam: at source angle b and fan angle g it is that of view
b + g and distance R sin g from the middle.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hqinet.physics.projection import ParallelBeam


@dataclass(frozen=True)
class FanBeam:
    """An equiangular fan over a full turn.

    Attributes:
        views: source positions.
        channels: detector elements, evenly spaced in angle.
        radius: from the source to the middle of the image, in pixels.
        fan: angle of the whole fan, rad.
    """

    views: int
    channels: int
    radius: float
    fan: float

    def fan_angles(self) -> Tensor:
        """Return the angle of each channel to the central ray, rad, (channels,) float64."""
        step = self.fan / self.channels
        return (torch.arange(self.channels, dtype=torch.float64) + 0.5) * step - self.fan / 2

    def source_angles(self) -> Tensor:
        """Return the angle of each source position, rad, (views,) float64."""
        return torch.arange(self.views, dtype=torch.float64) * (2 * math.pi / self.views)


def fan_from_parallel(projections: Tensor, parallel: ParallelBeam, fan: FanBeam) -> Tensor:
    """Return what the fan measures: (n, views, bins) to (n, fan.views, fan.channels) float32."""
    angle = fan.fan_angles()
    view = fan.source_angles()[:, None] + angle
    distance = (fan.radius * torch.sin(angle)).expand_as(view)
    # Over a full turn: from the other side each ray is seen mirrored about the middle element.
    mirrored = projections.flip(-1).roll(1, dims=-1)
    turn = torch.cat([projections, mirrored], dim=1)
    place = view * (parallel.views / math.pi)
    return _sampled(turn, place, distance + parallel.bins // 2)


def parallel_from_fan(projections: Tensor, fan: FanBeam, parallel: ParallelBeam) -> Tensor:
    """Rebin a fan: (n, fan.views, fan.channels) to (n, views, bins) float32, ready for FBP.

    Each parallel ray is the mean of the two that see it; rays outside the fan are zero. Raises
    ValueError where the source is inside the detector's reach.
    """
    distance = torch.arange(parallel.bins, dtype=torch.float64) - parallel.bins // 2
    if fan.radius <= distance.abs().max():
        raise ValueError(
            f"a source {fan.radius:g} pixels from the middle is within the {parallel.bins} "
            "elements of the detector"
        )
    view = torch.arange(parallel.views, dtype=torch.float64)[:, None] * (math.pi / parallel.views)
    seen = []
    for side, turned in ((1, 0.0), (-1, math.pi)):
        angle = torch.asin(side * distance / fan.radius).expand(parallel.views, -1)
        source = (view + turned - angle) * (fan.views / (2 * math.pi))
        channel = (angle + fan.fan / 2) * (fan.channels / fan.fan) - 0.5
        seen.append(_sampled(projections, source, channel))
    return (seen[0] + seen[1]) / 2


def _sampled(turn: Tensor, view: Tensor, element: Tensor) -> Tensor:
    """Cubic interpolation of a full turn (n, v, e) at places (a, b) in views and elements.

    Views go round; beyond the detector is nothing.
    """
    views, elements = turn.shape[1:]
    around = torch.cat([turn[:, -2:], turn, turn[:, :3]], dim=1)[:, None]
    y = (view % views) + 2
    grid = torch.stack(
        [(2 * element + 1) / elements - 1, (2 * y + 1) / around.shape[2] - 1], dim=-1
    ).float()
    grid = grid.to(turn.device).expand(len(turn), -1, -1, -1)
    return F.grid_sample(around, grid, "bicubic", "zeros", align_corners=False)[:, 0]
