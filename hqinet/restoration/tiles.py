"""A slice that does not fit into the device's memory is restored in halves that overlap.

What a network pools over the whole image (scSE, the pyramid's pooled branch) and the noise level of
a slice are then those of the half, so that the result is not that of the whole slice: see
`benchmarks/README.md` for how far it is off. Nothing is cut that fits.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from hqinet.memory import is_out_of_memory

logger = logging.getLogger(__name__)

OVERLAP = 64
"""Pixels that each half sees beyond the cut; results are blended over both."""
GRID = 16
"""Cuts lie on multiples of it: a network's coarsest map has a pixel for so many."""


def within_memory(model: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
    """Restore `(n, 3, h, w)` to `(n, 1, h, w)` on the CPU, in as few parts as the memory takes.

    Raises torch.OutOfMemoryError where halves would be smaller than they overlap.
    """
    result = _tried(model, windows)
    if result is not None:
        return result
    if len(windows) > 1:
        parts = windows.split((len(windows) + 1) // 2)
        return torch.cat([within_memory(model, part) for part in parts])
    logger.warning("a slice does not fit into memory and is restored in overlapping halves")
    dim = 2 if windows.shape[2] >= windows.shape[3] else 3
    size = windows.shape[dim]
    if size < 4 * OVERLAP:
        raise torch.OutOfMemoryError(
            f"{windows.shape[2]} x {windows.shape[3]} pixels do not fit into the device's memory"
        )
    cut = size // 2 // GRID * GRID
    before = within_memory(model, windows.narrow(dim, 0, cut + OVERLAP))
    after = within_memory(model, windows.narrow(dim, cut - OVERLAP, size - cut + OVERLAP))
    return blended(before, after, cut, dim)


def blended(before: Tensor, after: Tensor, cut: int, dim: int) -> Tensor:
    """Join two halves of an image, which overlap by `2 * OVERLAP` around a cut.

    The share of the second grows over OVERLAP pixels; nearer to a half's end than half of that
    nothing is taken from it, for there it sees its own edge.
    """
    shape = [1, 1, 1, 1]
    shape[dim] = 2 * OVERLAP
    share = ((torch.arange(2 * OVERLAP) + 0.5) / OVERLAP - 0.5).clamp(0, 1).view(shape)
    both = torch.lerp(
        before.narrow(dim, cut - OVERLAP, 2 * OVERLAP), after.narrow(dim, 0, 2 * OVERLAP), share
    )
    rest = after.narrow(dim, 2 * OVERLAP, after.shape[dim] - 2 * OVERLAP)
    return torch.cat([before.narrow(dim, 0, cut - OVERLAP), both, rest], dim)


def _tried(model: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor | None:
    """The result; None where memory ran out, everything that the attempt held being free again."""
    try:
        return model(windows).float().cpu()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
