"""How sharp edges are, by their contrast: a denoiser may keep bone and blur what is faint.

Edges of a reference are taken where it steps by a contrast of the range asked for, both images are
read along the normal of the same edges, and the profiles averaged (Richard et al. 2012, the
task-based transfer function, in anatomy instead of a rod).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

CONTRASTS = {"soft": (40.0, 150.0), "lung": (400.0, 900.0), "bone": (150.0, 1000.0)}
"""Steps in HU; lung is told from bone by what lies below (`LUNG_HU`)."""
LUNG_HU = -400.0
REACH = 6
"""Pixels to each side of an edge."""
_STEP = 0.25
_MOST = 4000


def edge_profiles(
    image: Tensor, reference: Tensor, body: Tensor, kind: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Return mean profiles across the edges of a kind of `CONTRASTS`, in image and reference.

    `image`, `reference`: (rows, columns) float32 HU; `body`: bool. Profiles run from -REACH to
    REACH pixels by a quarter of one, rising, from 0 to 1 in the reference's units. The third value
    is the number of edges; without any the profiles are NaN.
    """
    smooth = F.avg_pool2d(reference[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
    dy, dx = torch.gradient(smooth)
    steepness = torch.hypot(dy, dx)
    crest = steepness >= F.max_pool2d(steepness[None, None], 5, 1, 2)[0, 0]
    inside = torch.zeros_like(body)
    inside[2 * REACH : -2 * REACH, 2 * REACH : -2 * REACH] = True
    y, x = torch.nonzero(crest & body & inside & (steepness > 1), as_tuple=True)
    normal = torch.stack([dy[y, x], dx[y, x]], dim=1) / steepness[y, x, None]
    offsets = torch.arange(-REACH, REACH + _STEP / 2, _STEP)
    across = torch.stack([y, x], dim=1)[:, None] + normal[:, None] * offsets[:, None]
    original = _read(reference, across)
    quarter = len(offsets) // 4
    below, above = original[:, :quarter].mean(1), original[:, -quarter:].mean(1)
    least, most = CONTRASTS[kind]
    contrast = above - below
    wanted = (contrast >= least) & (contrast < most) & ((below < LUNG_HU) == (kind == "lung"))
    chosen = torch.nonzero(wanted)[:_MOST, 0]
    if not len(chosen):
        nothing = np.full(len(offsets), np.nan)
        return nothing, nothing, 0
    base, step = below[chosen, None], contrast[chosen, None]
    of_image = (_read(image, across[chosen]) - base) / step
    of_reference = (original[chosen] - base) / step
    profiles = (profile.mean(0).double().numpy() for profile in (of_image, of_reference))
    return *profiles, len(chosen)


def relative_sharpness(image: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Return the steepest slope of one mean profile over that of the other; 1 is equally sharp."""
    return float(np.diff(image).max() / np.diff(reference).max())


def _read(image: Tensor, places: Tensor) -> Tensor:
    """Bilinear values at (n, k, 2) rows and columns: (n, k)."""
    rows, columns = image.shape
    scale = torch.tensor([columns, rows], dtype=torch.float32)
    grid = (places.flip(-1) * 2 + 1) / scale - 1
    return F.grid_sample(image[None, None], grid[None].float(), align_corners=False)[0, 0]
