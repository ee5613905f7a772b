"""Samples: three-slice windows, crops and their augmentation, as a function of (seed, number).

Training sees one endless, numbered stream of samples. What sample `number` is depends on the seed
and on `number` alone, never on the batch, the feed, the rank or how often a run was resumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hqinet.intensity import HU_RANGE, normalise
from hqinet.noise import FLOOR_HU, whiten
from hqinet.training.recipe import SamplingRecipe

_STREAMS = {"sample": 0, "slice": 1, "order": 2}
"""Second word of Philox's key: independent streams of numbers under one seed."""
_UNIFORMS = 8
_UNIFORMS_PER_COUNT = 4
_WINDOWS_HELD = 8
"""For each place in the batch; a window comes again every so many batches."""


class HuVolume(Protocol):
    """A volume in HU, int16 (slices, rows, columns): a NumPy array, or slices read from a store."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Slices, rows, columns."""

    def __getitem__(self, index: slice, /) -> NDArray[np.int16]:
        """Return consecutive slices as int16 HU."""


@dataclass(frozen=True)
class VolumePair:
    """One patient: the low-dose volume and the full-dose volume of the same shape."""

    patient: str
    anatomy: str
    low: HuVolume
    full: HuVolume

    def __post_init__(self) -> None:
        if tuple(self.low.shape) != tuple(self.full.shape) or len(self.low.shape) != 3:
            message = (
                f"patient {self.patient}: low dose is {tuple(self.low.shape)} and full dose "
                f"{tuple(self.full.shape)}; both must be the same (slices, rows, columns)"
            )
            raise ValueError(message)

    @property
    def slices(self) -> int:
        """Number of slices, each of which is the middle of one window."""
        return int(self.low.shape[0])

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.low.shape[1]), int(self.low.shape[2])


def window_slices(middle: int, slices: int) -> tuple[int, int, int]:
    """Return the three slice numbers of a window; at both ends the edge slice is repeated."""
    return max(middle - 1, 0), middle, min(middle + 1, slices - 1)


def crop_size(recipe: SamplingRecipe, pairs: Sequence[VolumePair]) -> tuple[int, int]:
    """Return rows and columns of every sample: the patch, or the largest slice there is.

    A smaller slice is padded with air at its end, on which low and full dose agree.
    """
    if recipe.patch is not None:
        return recipe.patch, recipe.patch
    return max(p.matrix[0] for p in pairs), max(p.matrix[1] for p in pairs)


@dataclass(frozen=True)
class Draw:
    """What one sample is: whose slice, which crop, how it is augmented."""

    window: int
    """Number of the window: samples of one number are cut from the same three slices."""
    pair: int
    middle: int
    row: int
    column: int
    flip_rows: bool
    flip_columns: bool
    dose: float
    white: float


class SampleOrder:
    """The numbered stream of samples over some patients.

    Windows are numbered. `slices`: every slice comes once in each pass, in an order shuffled by
    pass. `patients`: every patient comes once in each round, with a slice drawn at random. With
    one patch a slice, samples are the windows in their order. With several, `windows_held` windows
    take turns, a batch is of as many windows as samples, and a window whose patches are cut makes
    room for one that has not been; those that a run begins with are cut short, one after the other.
    """

    def __init__(self, recipe: SamplingRecipe, pairs: Sequence[VolumePair], seed: int) -> None:
        self.recipe, self.seed = recipe, seed
        self.crop = crop_size(recipe, pairs)
        self.matrices = [pair.matrix for pair in pairs]
        self.counts = [pair.slices for pair in pairs]
        self.starts = np.cumsum([0, *self.counts])
        self.windows_held = recipe.batch * min(recipe.patches_per_slice, _WINDOWS_HELD)
        self._shuffled: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))
        self._slices: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        """Return the number of slices, which is the number of samples in the paper's epoch."""
        return int(self.starts[-1])

    def draw(self, first: int, count: int) -> list[Draw]:
        """Return samples `first` to `first + count - 1` of the stream."""
        uniforms = _uniforms(self.seed, "sample", first, count)
        return [self._draw(first + i, row) for i, row in enumerate(uniforms.tolist())]

    def _draw(self, number: int, uniforms: list[float]) -> Draw:
        window = self._window(number)
        if window not in self._slices:
            if len(self._slices) >= 4 * self.windows_held:
                self._slices.clear()
            self._slices[window] = self._slice(window)
        pair, middle = self._slices[window]
        row, column, flip_rows, flip_columns, dose, white, *_ = uniforms
        rows, columns = self.matrices[pair]
        # Whitening would carry noise into the air that fills up a slice smaller than the crop.
        whole = rows >= self.crop[0] and columns >= self.crop[1]
        low, high = self.recipe.dose or (1.0, 1.0)
        return Draw(
            window=window,
            pair=pair,
            middle=middle,
            row=int(row * (max(rows - self.crop[0], 0) + 1)),
            column=int(column * (max(columns - self.crop[1], 0) + 1)),
            flip_rows=self.recipe.flips and flip_rows < 0.5,
            flip_columns=self.recipe.flips and flip_columns < 0.5,
            dose=low + dose * (high - low),
            white=white**2 * self.recipe.white if whole else 0.0,
        )

    def _window(self, number: int) -> int:
        """Return which window sample `number` is cut from.

        The windows held take turns and are replaced one after the other. Their number is a
        multiple of the batch, so that every rank of a distributed run reads its own.
        """
        held, patches = self.windows_held, self.recipe.patches_per_slice
        turn, place = divmod(number, held)
        replaced = (turn + place * patches // held) // patches
        return replaced * held + place

    def _slice(self, number: int) -> tuple[int, int]:
        """Return the patient and the middle slice of window `number`."""
        if self.recipe.balance == "patients":
            pair = self._shuffle(number, len(self.counts))
            pick = float(_uniforms(self.seed, "slice", number, 1)[0, 0])
            return pair, int(pick * self.counts[pair])
        position = self._shuffle(number, len(self))
        pair = int(np.searchsorted(self.starts, position, side="right")) - 1
        return pair, position - int(self.starts[pair])

    def _shuffle(self, number: int, size: int) -> int:
        """Return entry `number` of an endless row of shuffled passes over `range(size)`."""
        turn, place = divmod(number, size)
        if self._shuffled[0] != turn:
            generator = _generator(self.seed, "order", turn << 64)
            self._shuffled = (turn, generator.permutation(size))
        return int(self._shuffled[1][place])


def _generator(seed: int, stream: str, count: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, _STREAMS[stream]], counter=count))


def _uniforms(seed: int, stream: str, first: int, count: int) -> NDArray[np.float64]:
    """Return eight uniform numbers in [0, 1) for each of `count` samples, (count, 8).

    Philox is counter-based (Salmon et al. 2011): sample `first + i` gets the same numbers
    whichever sample the call starts at.
    """
    generator = _generator(seed, stream, first * (_UNIFORMS // _UNIFORMS_PER_COUNT))
    return generator.random((count, _UNIFORMS))


class Batch(NamedTuple):
    """Samples as they are stored, before `prepare`."""

    low: Tensor
    """(n, 3, h, w) int16 HU"""
    full: Tensor
    """(n, 3, h, w) int16 HU"""
    noise: Tensor
    """(n, 2) float32 HU: noise level of the whole low-dose and full-dose middle slice"""
    dose: Tensor
    """(n,) float32: factor on `low - full`"""
    white: Tensor
    """(n,) float32: share of the variance of `low - full` to make white"""
    flips: Tensor
    """(n, 2) bool: mirror rows, mirror columns"""


def augmentation(draws: Sequence[Draw]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the `dose`, `white` and `flips` of a batch."""
    noise = torch.tensor([(draw.dose, draw.white) for draw in draws], dtype=torch.float32)
    flips = torch.tensor([(draw.flip_rows, draw.flip_columns) for draw in draws])
    return noise[:, 0], noise[:, 1], flips


def prepare(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Move a batch to the device; normalise, change dose and noise texture, and mirror there.

    A dose factor t makes `full + t (low - full)`, whose added noise has t times the SD. Its noise
    level follows from the measured ones, for the added noise is independent of the full dose's.
    Returns windows (n, 3, h, w), full dose (n, 1, h, w), noise level (n,): float32, normalised.
    """
    low, full, noise, dose, white, flips = (x.to(device, non_blocking=True) for x in batch)
    low, full = normalise(low.float()), normalise(full.float())
    if batch.white.any():
        added, gain = whiten(low - full, white)
        low = full + dose.view(-1, 1, 1, 1) * added
        dose = dose * gain
    else:
        low = torch.lerp(full, low, dose.view(-1, 1, 1, 1))
    low_variance, full_variance = noise.square().unbind(1)
    added = (low_variance - full_variance).clamp_min(0)
    level = (full_variance + dose.square() * added).sqrt().clamp_min(FLOOR_HU) / HU_RANGE
    full = full[:, 1:2]
    for axis, flip in ((2, flips[:, 0]), (3, flips[:, 1])):
        chosen = flip.view(-1, 1, 1, 1)
        low = torch.where(chosen, low.flip(axis), low)
        full = torch.where(chosen, full.flip(axis), full)
    return low, full, level
