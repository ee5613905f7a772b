"""Samples: three-slice windows, crops and their augmentation, as a function of (seed, number).

Training sees one endless, numbered stream of samples. What sample `number` is depends on the seed
and on `number` alone, never on the batch, the feed, the rank or how often a run was resumed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hqinet.intensity import HU_RANGE, normalise
from hqinet.noise import FLOOR_HU, noise_level, sharpened, sharpening_gain
from hqinet.samples.recipe import SamplingRecipe

_STREAMS = {"sample": 0, "slice": 1, "order": 2, "partner": 3}
"""Second word of Philox's key: independent streams of numbers under one seed."""
_UNIFORMS = 12
_UNIFORMS_PER_COUNT = 4
_PARTNERS = (-5, -4, -3, 3, 4, 5)
"""Slices away, whose windows share no slice with this one and lie in nearly the same anatomy."""
_TRUE, _ISOLATED, _EDGE_BEFORE, _EDGE_AFTER = range(4)
_NEIGHBOURS = ((0, 1, 2), (1, 1, 1), (0, 1, 0), (2, 1, 2))
"""Slices of the window that stand for before, middle and after, in these four cases."""
_ISOLATED_SHARE = 0.7
"""Of the windows that lose neighbours; the others lose one, as at the edge of a volume."""
IMPLIED_DOSES = (0.02, 0.9)
"""Bounds of the dose that a pair can imply: structure and resampling deceive beyond."""
_JUDGED_SLICES = 7
_MARGIN = 2
"""Pixels around a patch that sharpening looks at."""
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
    dose: float | None = None
    """Of the low-dose volume, as stated, as a fraction of the full dose; None: not stated."""

    def __post_init__(self) -> None:
        if tuple(self.low.shape) != tuple(self.full.shape) or len(self.low.shape) != 3:
            message = (
                f"patient {self.patient}: low dose is {tuple(self.low.shape)} and full dose "
                f"{tuple(self.full.shape)}; both must be the same (slices, rows, columns)"
            )
            raise ValueError(message)

    def known_dose(self) -> float:
        """Return the dose as stated, else as the noise of both volumes implies it.

        Variance is inverse to dose: `(level of full / level of low)^2`, the median over evenly
        spaced slices, within IMPLIED_DOSES.
        """
        if self.dose is not None:
            return self.dose
        picks = np.linspace(0, self.slices - 1, min(_JUDGED_SLICES, self.slices)).astype(int)
        ratios = []
        for z in picks:
            full, low = (
                noise_level(torch.from_numpy(np.ascontiguousarray(stack[z : z + 1])))
                for stack in (self.full, self.low)
            )
            ratios.append(float(full / low) ** 2)
        return float(np.clip(np.median(ratios), *IMPLIED_DOSES))

    @property
    def slices(self) -> int:
        """Number of slices, each of which is the middle of one window."""
        return int(self.low.shape[0])

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.low.shape[1]), int(self.low.shape[2])


def window_slices(middle: int, slices: int) -> tuple[int, int, int]:
    """Return the three slice numbers of a window.

    Beyond an edge stands the other neighbour, whose noise is not that of the slice itself; a single
    slice stands three times.
    """
    if slices == 1:
        return 0, 0, 0
    before = middle - 1 if middle else 1
    return before, middle, middle + 1 if middle + 1 < slices else middle - 1


def crop_size(recipe: SamplingRecipe, pairs: Sequence[VolumePair]) -> tuple[int, int]:
    """Return rows and columns that each sample is cut from: the patch, or the largest slice.

    More than the patch where it is made of more (`recipe.zoom`, `recipe.kernels`). A smaller slice
    is padded with air at its end, on which low and full dose agree.
    """
    if recipe.patch is not None:
        side = recipe.patch + (2 * _MARGIN if recipe.kernels else 0)
        if recipe.zoom:
            side = math.ceil(side * recipe.zoom[1]) + 2 * _MARGIN
        return side, side
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
    partner: int
    """Middle slice of another window of the patient, whose noise is mixed in; `middle`: none."""
    mixing: tuple[float, float]
    """Factors on the added noise of the window and of its partner."""
    dose: float
    """Fraction of the full dose that the sample has."""
    neighbours: int
    """Row of _NEIGHBOURS."""
    zoom: float
    """Pixels of the slice for each pixel of the sample."""
    kernel: float
    """Factor on the finest detail, of anatomy and noise alike."""


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
        self.doses = [pair.dose if recipe.dose is None else pair.known_dose() for pair in pairs]
        self.starts = np.cumsum([0, *self.counts])
        self.windows_held = recipe.batch * min(recipe.patches_per_slice, _WINDOWS_HELD)
        self._shuffled: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))
        self._slices: dict[int, tuple[int, int, int]] = {}

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
        pair, middle, partner = self._slices[window]
        row, column, flip_rows, flip_columns, dose, turn, lost, how, zoom, kernel, *_ = uniforms
        rows, columns = self.matrices[pair]
        recipe = self.recipe
        drawn, scale = _drawn_dose(self.doses[pair], recipe.dose, dose)
        angle = 2 * math.pi * turn if partner != middle else 0.0
        return Draw(
            window=window,
            pair=pair,
            middle=middle,
            row=int(row * (max(rows - self.crop[0], 0) + 1)),
            column=int(column * (max(columns - self.crop[1], 0) + 1)),
            flip_rows=recipe.flips and flip_rows < 0.5,
            flip_columns=recipe.flips and flip_columns < 0.5,
            partner=partner,
            mixing=(scale * math.cos(angle), scale * math.sin(angle)),
            dose=drawn,
            neighbours=_neighbours(how) if lost < recipe.drop_neighbours else _TRUE,
            zoom=1.0 if recipe.zoom is None else _log_uniform(recipe.zoom, zoom),
            kernel=1.0 if recipe.kernels is None else _log_uniform(recipe.kernels, kernel),
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

    def _slice(self, number: int) -> tuple[int, int, int]:
        """Return the patient, the middle slice and the partner of window `number`."""
        if self.recipe.balance == "patients":
            pair = self._shuffle(number, len(self.counts))
            pick = float(_uniforms(self.seed, "slice", number, 1)[0, 0])
            middle = int(pick * self.counts[pair])
        else:
            position = self._shuffle(number, len(self))
            pair = int(np.searchsorted(self.starts, position, side="right")) - 1
            middle = position - int(self.starts[pair])
        others = [middle + step for step in _PARTNERS if 0 <= middle + step < self.counts[pair]]
        if not self.recipe.mix_noise or not others:
            return pair, middle, middle
        pick = float(_uniforms(self.seed, "partner", number, 1)[0, 0])
        return pair, middle, others[int(pick * len(others))]

    def _shuffle(self, number: int, size: int) -> int:
        """Return entry `number` of an endless row of shuffled passes over `range(size)`."""
        turn, place = divmod(number, size)
        if self._shuffled[0] != turn:
            generator = _generator(self.seed, "order", turn << 64)
            self._shuffled = (turn, generator.permutation(size))
        return int(self._shuffled[1][place])


def _log_uniform(bounds: tuple[float, float], uniform: float) -> float:
    low, high = bounds
    return low * (high / low) ** uniform


def _drawn_dose(
    own: float | None, bounds: tuple[float, float] | None, uniform: float
) -> tuple[float, float]:
    """Return a sample's dose, NaN where it is unknown, and the factor on its added noise."""
    if own is None or bounds is None:
        return math.nan if own is None else own, 1.0
    drawn = _log_uniform(bounds, uniform)
    # Noise variance is inverse to dose; that of the added noise is `1 / dose - 1` of full dose's.
    return drawn, math.sqrt((1 / drawn - 1) / (1 / own - 1))


def _neighbours(uniform: float) -> int:
    if uniform < _ISOLATED_SHARE:
        return _ISOLATED
    return _EDGE_BEFORE if uniform < (1 + _ISOLATED_SHARE) / 2 else _EDGE_AFTER


def _generator(seed: int, stream: str, count: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, _STREAMS[stream]], counter=count))


def _uniforms(seed: int, stream: str, first: int, count: int) -> NDArray[np.float64]:
    """Return twelve uniform numbers in [0, 1) for each of `count` samples, (count, 12).

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
    partner: Tensor
    """(n, 3, h, w) int16 HU: `low - full` of each window's partner"""
    noise: Tensor
    """(n, 2) float32 HU: noise level of the whole low-dose and full-dose middle slice"""
    draws: Sequence[Draw]


class Sample(NamedTuple):
    """Samples to train on: float32, normalised, on the device."""

    windows: Tensor
    """(n, 3, h, w) low dose"""
    full: Tensor
    """(n, 1, h, w) full dose of the middle slice"""
    noise: Tensor
    """(n,) noise level of the low-dose middle slice"""
    dose: Tensor
    """(n,) fraction of the full dose"""


def prepare(batch: Batch, recipe: SamplingRecipe, device: torch.device) -> Sample:
    """Move a batch to the device; normalise, make its dose, neighbours and texture, and mirror.

    The added noise of a window and that of a place nearby, each times a cosine and a sine, sum to
    noise of the same covariance that has not been seen before; its scale makes the dose. Its noise
    level follows from the measured ones, for the added noise is independent of the full dose's.
    Zoom and kernel change anatomy and noise alike, and so keep the relation between both doses.
    """
    draws = batch.draws
    low, full, partner, noise = (x.to(device, non_blocking=True) for x in batch[:4])
    own, other = (
        torch.tensor([d.mixing for d in draws], device=device).view(-1, 2, 1, 1, 1).unbind(1)
    )
    added = own * (low.float() - full) + other * partner.float()
    full = full.float()
    low = normalise(full + added)
    chosen = torch.tensor([_NEIGHBOURS[d.neighbours] for d in draws], device=device)
    low = low.gather(1, chosen.view(-1, 3, 1, 1).expand_as(low))
    both = torch.cat([low, normalise(full[:, 1:2])], dim=1)
    low_variance, full_variance = noise.square().unbind(1)
    scale = (own.square() + other.square()).flatten()
    level = full_variance + scale * (low_variance - full_variance).clamp_min(0)
    level = level.sqrt()
    if recipe.zoom is not None or recipe.kernels is not None:
        both, gain = _textured(both, draws, recipe)
        level = level * gain
    level = level.clamp_min(FLOOR_HU) / HU_RANGE
    flips = torch.tensor([(d.flip_rows, d.flip_columns) for d in draws], device=device)
    for axis, flip in ((2, flips[:, 0]), (3, flips[:, 1])):
        both = torch.where(flip.view(-1, 1, 1, 1), both.flip(axis), both)
    dose = torch.tensor([d.dose for d in draws], device=device)
    return Sample(both[:, :3], both[:, 3:], level, dose)


def _textured(both: Tensor, draws: Sequence[Draw], recipe: SamplingRecipe) -> tuple[Tensor, Tensor]:
    """Resample and sharpen crops (n, c, side, side) to patches; return them and the level's gain.

    The last channel is the full dose, the one of index 1 the low dose of the same slice.
    """
    before = both[:, 1] - both[:, -1]
    side = int(recipe.patch or 0) + (2 * _MARGIN if recipe.kernels else 0)
    if recipe.zoom is not None:
        zoom = torch.tensor([d.zoom for d in draws], device=both.device)
        theta = torch.zeros(len(draws), 2, 3, device=both.device)
        theta[:, 0, 0] = theta[:, 1, 1] = zoom * side / both.shape[-1]
        grid = F.affine_grid(theta, [len(draws), 1, side, side], align_corners=False)
        both = F.grid_sample(both, grid, "bicubic", "reflection", align_corners=False)
    if recipe.kernels is not None:
        kernel = torch.tensor([d.kernel for d in draws], device=both.device)
        both = sharpened(both, kernel)
    return both, sharpening_gain(before, both[:, 1] - both[:, -1])
