"""Slices kept for the report's viewer: which, at what size, in which encoding.

HU are coded in eight bits with steps of 8 HU in lung, 4 HU in soft tissue and about 100 HU in bone:
below what a display window shows, and a third of the bytes of a lossless twelve-bit image.
"""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from hqinet.samples.pairs import HuVolume, VolumePair

LEVELS = np.concatenate(
    [np.arange(-1024, -200, 8), np.arange(-200, 300, 4), np.linspace(300, 3071, 28)]
).astype(np.float32)
"""HU of each of the 256 codes, ascending."""

CHOSEN_BY = "psnr_window"
"""The metric that names a patient's best, median and worst slice."""
MOST_SLICES = 24
LEAST_SLICES = 7
"""Rather halve the matrix than show fewer slices of a patient than this."""


@dataclass(frozen=True)
class View:
    """One slice: its index, what it is ("best", "median", "worst" or nothing), a PNG an image."""

    index: int
    label: str
    images: dict[str, bytes]


def choose_slices(quality: np.ndarray) -> dict[int, str]:
    """Best, median and worst slice by number: slice index to label.

    quality: one value a slice, more is better; slices without a finite one are never chosen.
    """
    order = [int(index) for index in np.argsort(quality) if np.isfinite(quality[index])]
    if not order:
        return {}
    chosen = {order[len(order) // 2]: "median", order[0]: "worst", order[-1]: "best"}
    return dict(sorted(chosen.items()))


def keep_views(
    pair: VolumePair, restored: HuVolume, labels: dict[int, str], budget: int
) -> list[View]:
    """Encode the labelled slices and as many evenly spaced others as `budget` bytes hold.

    The matrix is halved, for all slices alike, until at least LEAST_SLICES fit.
    """
    stacks = {"low": pair.low, "restored": restored, "full": pair.full}
    middle = pair.slices // 2
    for step in (1, 2, 4, 8):
        probe = sum(len(encode(stack[middle : middle + 1][0], step)) for stack in stacks.values())
        count = min(budget // probe, MOST_SLICES, pair.slices)
        if count >= min(LEAST_SLICES, pair.slices):
            break
    chosen = sorted(labels)
    for others in range(1, count + 1):
        if len(chosen) >= count:
            break
        spread = np.linspace(0, pair.slices - 1, others).astype(int)
        chosen = sorted({*labels, *spread.tolist()})
    return [
        View(
            index,
            labels.get(index, ""),
            {name: encode(stack[index : index + 1][0], step) for name, stack in stacks.items()},
        )
        for index in chosen
    ]


def encode(hu: np.ndarray, step: int = 1) -> bytes:
    """PNG of `hu` (rows, columns), reduced by averaging `step` x `step` pixels."""
    rows, columns = (size - size % step for size in hu.shape)
    blocks = hu[:rows, :columns].astype(np.float32)
    blocks = blocks.reshape(rows // step, step, columns // step, step).mean((1, 3))
    between = (LEVELS[1:] + LEVELS[:-1]) / 2
    buffer = BytesIO()
    Image.fromarray(np.searchsorted(between, blocks).astype(np.uint8)).save(
        buffer, format="PNG", optimize=True
    )
    return buffer.getvalue()
