"""Faint lesions that training puts into samples, low and full dose alike.

A network that has seen few learns that a faint spot is noise, and takes it away with the noise:
what it then gains in PSNR a reader loses in detection. The noise that was added does not depend on
so small a contrast, so a spot can be put in afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

DIAMETER = (4.0, 20.0)
"""Pixels: about 3 to 15 mm."""
CONTRAST = (10.0, 80.0)
"""HU, of either sign."""
EDGE = 0.7
"""Pixels over which its border falls off, as a logistic function."""


@dataclass(frozen=True)
class Lesion:
    """One round spot in a crop."""

    row: float
    column: float
    """Of its middle, as a share of the crop's rows and columns."""
    diameter: float
    """Pixels."""
    contrast: float
    """HU."""
    neighbours: float
    """Contrast in the slices before and after, over that in the middle."""

    @classmethod
    def drawn(cls, uniforms: Sequence[float]) -> Self:
        """Draw one by six or more uniform numbers in [0, 1); size and contrast log-uniform."""
        row, column, diameter, contrast, darker, neighbours, *_ = uniforms
        sign = -1.0 if darker < 0.5 else 1.0
        return cls(
            row,
            column,
            DIAMETER[0] * (DIAMETER[1] / DIAMETER[0]) ** diameter,
            sign * CONTRAST[0] * (CONTRAST[1] / CONTRAST[0]) ** contrast,
            neighbours,
        )


def render(
    lesions: Sequence[Sequence[Lesion]], crop: tuple[int, int], device: torch.device
) -> Tensor:
    """Return what is added to each sample's three slices, (n, 3, rows, columns) float32 HU.

    `lesions`: as many for each sample.
    """
    rows, columns = crop
    numbers = torch.tensor(
        [
            [(x.row * rows, x.column * columns, x.diameter, x.contrast, x.neighbours) for x in of]
            for of in lesions
        ],
        device=device,
    )
    row, column, diameter, contrast, neighbours = numbers[..., None, None].unbind(2)
    down = torch.arange(rows, device=device).view(-1, 1) - row
    across = torch.arange(columns, device=device) - column
    shape = contrast * torch.sigmoid((diameter / 2 - torch.hypot(down, across)) / EDGE)
    middle, beside = shape.sum(1), (shape * neighbours).sum(1)
    return torch.stack([beside, middle, beside], dim=1)
