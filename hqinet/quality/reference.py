"""What slices are judged against: reference, low dose, display window, body and tissues."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from hqinet.intensity import HU_OFFSET, HU_RANGE, window_edges

TISSUES: dict[str, tuple[float, float]] = {
    "lung": (-950.0, -700.0),
    "fat": (-140.0, -40.0),
    "soft": (0.0, 120.0),
    "bone": (250.0, 2000.0),
}
"""HU bins of the smoothed full-dose image."""


LARGE_MATRIX = 256
LIMB = 0.05
"""Of the largest part's size: what another part of the body has at least."""
TISSUE_HU = -30.0
"""What a quarter of another part of the body exceeds: muscle, however much fat is around it."""
RANKED = 16_384
"""Pixels by which the steepness of edges is ranked."""
SSIM_SIZE = 7
"""Pixels a side of the windows of structural similarity."""
BINS = 256
"""Of a histogram of grey levels."""


@dataclass(frozen=True)
class DisplayWindow:
    """A display window: level (centre) and width in HU."""

    level: float
    width: float


WINDOWS: dict[str, DisplayWindow] = {
    "chest": DisplayWindow(-600, 1500),
    "abdomen": DisplayWindow(50, 400),
    "head": DisplayWindow(40, 80),
}
"""The published benchmark's windows; other anatomies are shown as soft tissue, like the abdomen."""


def window_of(anatomy: str) -> DisplayWindow:
    """The display window of an anatomy."""
    return WINDOWS.get(anatomy, WINDOWS["abdomen"])


def window(hu: Tensor, shown: DisplayWindow) -> Tensor:
    """HU to 0..1 as a display does (DICOM PS3.3 C.11.2.1.2.1, linear)."""
    black, white = window_edges(shown.level, shown.width)
    return (hu - black).div_(white - black).clamp_(0, 1)


def clip(hu: Tensor) -> Tensor:
    """HU clipped to -1024..1900, as the benchmark does before it takes errors."""
    return hu.clamp(-1024, 1900)


@dataclass(frozen=True)
class Reference:
    """Slices of one patient with all that a metric may need; every tensor is (n, rows, columns).

    full, low: float32 HU. slope: the reference's gradient, y and x, HU a pixel. regions: bool for
    "body", each name in TISSUES, and "edges" (the steepest pixels of the reference in the body).
    """

    full: Tensor
    low: Tensor
    window: DisplayWindow
    slope: tuple[Tensor, Tensor]
    regions: dict[str, Tensor]

    @cached_property
    def masks(self) -> dict[str, Tensor]:
        """Each region as 0 and 1, float32."""
        # As bytes: a CPU turns those into floats several times faster than it does truth values.
        return {name: region.view(torch.uint8).float() for name, region in self.regions.items()}

    @cached_property
    def sizes(self) -> dict[str, Tensor]:
        """Pixels of each region: (n,)."""
        return {name: mask.sum((1, 2)) for name, mask in self.masks.items()}

    @cached_property
    def body_of_windows(self) -> Tensor:
        """1 where the centre of an SSIM window is body, else 0: (n, rows - 6, columns - 6)."""
        border = SSIM_SIZE // 2
        return self.masks["body"][:, border:-border, border:-border].contiguous()

    @cached_property
    def noise(self) -> Tensor:
        """Low dose less reference, HU: what a perfect restorer removes."""
        return self.low - self.full

    @cached_property
    def shown(self) -> Tensor:
        """The reference as displayed, 0..1."""
        return window(self.full, self.window)

    @cached_property
    def clipped(self) -> Tensor:
        """The reference clipped to -1024..1900 HU as the benchmark does."""
        return clip(self.full)

    @cached_property
    def shown_sum(self) -> Tensor:
        """Window sums of the reference as displayed, (n, rows - 6, columns - 6)."""
        return box_fold(self.shown, SSIM_SIZE, torch.add)

    @cached_property
    def energy(self) -> Tensor:
        """Of the reference over the paper's range, mean HU^2: (n,)."""
        return (self.full + HU_OFFSET).square_().mean((1, 2))

    @cached_property
    def peak(self) -> Tensor:
        """The reference's maximum over the paper's range, HU: (n,)."""
        return self.full.amax((1, 2)) + HU_OFFSET

    @cached_property
    def noise_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and mean square of the noise in the body, HU and HU^2: (n,) each."""
        return self.mean(self.noise, "body"), self.mean(self.noise.square(), "body")

    @cached_property
    def steepness(self) -> Tensor:
        """Mean square gradient on the edges: (n,)."""
        y, x = self.slope
        return self.mean((y * y).addcmul_(x, x), "edges")

    def mean(self, x: Tensor, region: str) -> Tensor:
        """Mean of a map over a region: (n,); NaN where the region is empty."""
        return dot(x, self.masks[region]) / self.sizes[region]

    @cached_property
    def codes(self) -> Tensor:
        """The reference's grey levels for histograms."""
        return grey_levels(self.full)


def prepare_reference(full: Tensor, low: Tensor, anatomy: str) -> Reference:
    """Prepare the slices `full` and `low`, (n, rows, columns) float32 HU, for measuring."""
    return reference_of_body(full, low, anatomy, find_body(full))


def reference_of_body(full: Tensor, low: Tensor, anatomy: str, body: Tensor) -> Reference:
    """Like `prepare_reference`, with the body known."""
    slope = gradient(full)
    regions = {"body": body, **find_tissues(full, body), "edges": find_edges(slope, body)}
    return Reference(full, low, window_of(anatomy), slope, regions)


def find_body(full: Tensor) -> Tensor:
    """The patient in each slice: what is denser than -500 HU, the largest part and any limb.

    Opened first, so that a table or a cable that touches the skin falls off, and holes filled;
    empty without one.
    Found on every second pixel of matrices from 256 on, for its border need not be exact.
    """
    step = 2 if min(full.shape[1:]) >= LARGE_MATRIX else 1
    masks = [_body(slice_) for slice_ in full[:, ::step, ::step].cpu().numpy()]
    body = torch.from_numpy(np.stack(masks)).to(full.device)
    rows, columns = full.shape[1:]
    return body.repeat_interleave(step, 1).repeat_interleave(step, 2)[:, :rows, :columns]


def find_tissues(full: Tensor, body: Tensor) -> dict[str, Tensor]:
    """Pixels well inside each tissue of TISSUES, and inside the body: foam of a couch is no lung.

    The bin is read off a 5x5 mean and shrunk by two pixels: a bin taken from the noisy pixel itself
    would select noise and feign a bias, and a border between lung and muscle is not fat.
    """
    mean = box_mean(F.pad(full[:, None], (2, 2, 2, 2), mode="replicate"), 5)[:, 0]
    # No value is in two bins, so that one map of a byte a pixel holds them all. Comparisons that
    # stay in one type, floats first and bytes then, are several times faster on a CPU.
    bins = torch.zeros_like(mean)
    for number, (lowest, highest) in enumerate(TISSUES.values(), start=1):
        distance = (mean - (lowest + highest) / 2).abs_()
        bins.add_(distance.le_((highest - lowest) / 2), alpha=number)
    bins = bins.to(torch.uint8).mul_(body.view(torch.uint8))
    around = F.pad(bins, (2, 2, 2, 2))
    least, most = box_fold(around, 5, torch.minimum), box_fold(around, 5, torch.maximum)
    inside = least == most
    return {
        name: inside & (bins == torch.full_like(bins, number))
        for number, name in enumerate(TISSUES, start=1)
    }


def gradient(hu: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences after 3x3 smoothing, HU a pixel, along y and along x."""
    around = F.pad(hu[:, None], (2, 2, 2, 2), mode="replicate")[:, 0]
    smooth = box_fold(around, 3, torch.add).div_(2 * 3**2)
    dy = smooth[:, 2:, 1:-1] - smooth[:, :-2, 1:-1]
    dx = smooth[:, 1:-1, 2:] - smooth[:, 1:-1, :-2]
    return dy, dx


def box_mean(x: Tensor, size: int) -> Tensor:
    """Mean over size x size windows that lie wholly inside `x` (..., rows, columns)."""
    return box_fold(x, size, torch.add).div_(size**2)


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Sum of the product of two maps (n, rows, columns): (n,)."""
    # Of matrices, for which it sums in pairs: a product by BLAS is faster, and wrong by 1e-4 and
    # more where many pixels have one value.
    return torch.linalg.vecdot(x.flatten(1), y.flatten(1))


def box_fold(x: Tensor, size: int, fold: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Fold (add, minimum, maximum) the size x size windows that lie wholly inside `x`.

    Whole-image operations on shifted views, where pooling with stride 1 is several times slower on
    a CPU; of windows of 1, 2, 4, ... pixels, so that seven take four operations an axis.
    """
    for axis in (-1, -2):
        length = x.shape[axis] - size + 1
        part, width, whole, done = x, 1, None, 0
        while done < size:
            if size & width:
                piece = part.narrow(axis, done, length)
                whole = piece if whole is None else fold(whole, piece)
                done += width
            if done < size:
                rest = part.shape[axis] - width
                part = fold(part.narrow(axis, 0, rest), part.narrow(axis, width, rest))
                width *= 2
        x = whole
    return x


def grey_levels(hu: Tensor) -> Tensor:
    """Index of the histogram bin of each pixel: BINS equal bins over -1024..3071 HU, int32."""
    return (hu + HU_OFFSET).mul_(BINS / HU_RANGE).int().clamp_(0, BINS - 1)


def find_edges(slope: tuple[Tensor, Tensor], body: Tensor, share: float = 0.05) -> Tensor:
    """The `share` of the body's pixels where the gradient is steepest.

    Ranked by evenly spaced pixels of the slice, RANKED or more of a matrix that has them.
    """
    y, x = slope
    steepness = (y * y).addcmul_(x, x)
    edges = torch.zeros_like(body)
    step = max(1, body[0].numel() // RANKED)
    for slice_, inside, chosen in zip(steepness, body, edges, strict=True):
        values = slice_.flatten()[::step][inside.flatten()[::step]]
        if values.numel():
            rank = max(1, round(values.numel() * (1 - share)))
            chosen |= inside & (slice_ >= values.kthvalue(rank).values)
    return edges


def _body(hu: np.ndarray) -> np.ndarray:
    parts, count = ndimage.label(ndimage.binary_opening(hu > -500, iterations=2))
    if count == 0:
        return np.zeros(hu.shape, bool)
    sizes = np.bincount(parts.ravel())[1:]
    # A second leg is tissue and large; a table or a pad is light, whatever its size.
    kept = [
        label
        for label, size in enumerate(sizes, start=1)
        if size == sizes.max()
        or (size >= LIMB * sizes.max() and np.quantile(hu[parts == label], 0.75) > TISSUE_HU)
    ]
    return ndimage.binary_fill_holes(np.isin(parts, kept))
