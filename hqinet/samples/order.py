"""Which samples there are: slices, crops and their augmentation, by (seed, number) alone.

Training sees one endless, numbered stream of samples. What sample `number` is depends on the seed
and on `number`, never on the batch, the feed, the rank or how often a run was resumed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hqinet.samples.lesions import Lesion
from hqinet.samples.pairs import VolumePair
from hqinet.samples.recipe import SamplingRecipe
from hqinet.samples.slab import EDGE_AFTER, EDGE_BEFORE, ISOLATED, TRUE

_STREAMS = {"sample": 0, "slice": 1, "order": 2, "partner": 3, "realisation": 4, "lesions": 5}
"""Second word of Philox's key: independent streams of numbers under one seed."""
_UNIFORMS = 12
_UNIFORMS_PER_COUNT = 4
_PARTNERS = (-5, -4, -3, 3, 4, 5)
"""Slices away, whose windows share no slice with this one and lie in nearly the same anatomy."""
_ISOLATED_SHARE = 0.7
"""Of the windows that lose neighbours; the others lose one, as at the edge of a volume."""
MARGIN = 2
"""Pixels around a patch that sharpening looks at."""
_WINDOWS_HELD = 8
"""For each place in the batch; a window comes again every so many batches."""


def crop_size(recipe: SamplingRecipe, pairs: Sequence[VolumePair]) -> tuple[int, int]:
    """Return rows and columns that each sample is cut from: the patch, or the largest slice.

    More than the patch where it is made of more (`recipe.zoom`, `recipe.kernels`). A smaller slice
    is padded with air at its end, on which low and full dose agree.
    """
    if recipe.patch is not None:
        side = recipe.patch + (2 * MARGIN if recipe.kernels else 0)
        if recipe.zoom:
            side = math.ceil(side * recipe.zoom[1]) + 2 * MARGIN
        return side, side
    return max(p.matrix[0] for p in pairs), max(p.matrix[1] for p in pairs)


@dataclass(frozen=True)
class Draw:
    """What one sample is: whose slice, which crop, how it is augmented."""

    window: int
    """Number of the window: samples of one number are cut from the same three slices."""
    pair: int
    realisation: int
    """Of the pair's low dose."""
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
    """Row of NEIGHBOURS."""
    zoom: float
    """Pixels of the slice for each pixel of the sample."""
    kernel: float
    """Factor on the finest detail, of anatomy and noise alike."""
    lesions: tuple[Lesion, ...]


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
        self.realisations = [len(pair.lows) for pair in pairs]
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
            realisation=self._realisation(window, self.realisations[pair]),
            middle=middle,
            row=int(row * (max(rows - self.crop[0], 0) + 1)),
            column=int(column * (max(columns - self.crop[1], 0) + 1)),
            flip_rows=recipe.flips and flip_rows < 0.5,
            flip_columns=recipe.flips and flip_columns < 0.5,
            partner=partner,
            mixing=(scale * math.cos(angle), scale * math.sin(angle)),
            dose=drawn,
            neighbours=_neighbours(how) if lost < recipe.drop_neighbours else TRUE,
            zoom=1.0 if recipe.zoom is None else _log_uniform(recipe.zoom, zoom),
            kernel=1.0 if recipe.kernels is None else _log_uniform(recipe.kernels, kernel),
            lesions=self._lesions(number),
        )

    def _lesions(self, number: int) -> tuple[Lesion, ...]:
        count = self.recipe.lesions
        if not count:
            return ()
        uniforms = _uniforms(self.seed, "lesions", number * count, count)
        return tuple(Lesion.drawn(row) for row in uniforms.tolist())

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

    def _realisation(self, number: int, count: int) -> int:
        """Return which of a pair's realisations window `number` is of."""
        if count == 1:
            return 0
        return int(float(_uniforms(self.seed, "realisation", number, 1)[0, 0]) * count)

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
        return ISOLATED
    return EDGE_BEFORE if uniform < (1 + _ISOLATED_SHARE) / 2 else EDGE_AFTER


def _generator(seed: int, stream: str, count: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, _STREAMS[stream]], counter=count))


def _uniforms(seed: int, stream: str, first: int, count: int) -> NDArray[np.float64]:
    """Return twelve uniform numbers in [0, 1) for each of `count` samples, (count, 12).

    Philox is counter-based (Salmon et al. 2011): sample `first + i` gets the same numbers
    whichever sample the call starts at.
    """
    generator = _generator(seed, stream, first * (_UNIFORMS // _UNIFORMS_PER_COUNT))
    return generator.random((count, _UNIFORMS))
