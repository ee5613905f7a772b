"""How much of what is there to be gained has been gained.

Against a full dose that has noise itself no restorer can win more than the noise that low dose has
over it: variance is inverse to dose, so that is `10 log10(1 / dose)` in dB.
"""

import math

import torch
from torch import Tensor


def dose_ceiling(dose: float) -> float:
    """Return the largest gain in PSNR over low dose, dB, `dose` a fraction of the full dose.

    The estimator `clean + dose (low - clean)` reaches it, where clean is the slice without noise.
    ValueError for a dose that is not above 0 and below 1.
    """
    if not 0 < dose < 1:
        raise ValueError(f"the dose must be above 0 and below 1, not {dose}")
    return 10 * math.log10(1 / dose)


def share_of_ceiling(
    low: Tensor, restored: Tensor, full: Tensor, body: Tensor, dose: float
) -> Tensor:
    """Return the gain inside the body over `dose_ceiling`, of each slice: (n,) float32.

    `low`, `restored`, `full`: (n, rows, columns) HU, not clipped; `body`: bool of that shape. NaN
    where a slice has no body or its low dose is its full dose; above 1 is chance or a wrong dose.
    """
    inside = body.sum((1, 2))
    before, after = (((x - full).square() * body).sum((1, 2)) / inside for x in (low, restored))
    gain = 10 * torch.log10(before / after)
    return torch.where(before > 0, gain / dose_ceiling(dose), torch.nan)
