"""Image quality of restored CT: the paper's metrics, the benchmark's, and a physicist's.

A metric is a function of a `Comparison` that gives (n,) float32: one value a slice, NaN where it is
not defined (no pixel of a tissue, no noise to remove) and +inf for the PSNR of a perfect slice.
`hqinet.quality.statistics` leaves both out of averages and counts them. `METRICS` names them all.

Sources: the paper is Lu et al. 2021 (HQINet); the benchmark is Eulig et al. 2024 (LDCT benchmark),
whose SSIM is scikit-image's default: uniform 7x7 window, sample covariance, border left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor

from hqinet.intensity import HU_RANGE
from hqinet.quality.reference import (
    BINS,
    SSIM_SIZE,
    TISSUES,
    Reference,
    box_fold,
    clip,
    dot,
    gradient,
    grey_levels,
    window,
)


@dataclass(frozen=True)
class Comparison:
    """An image (n, rows, columns) float32 HU against its reference; what several metrics share."""

    image: Tensor
    reference: Reference

    @cached_property
    def error(self) -> Tensor:
        """Image less reference, HU."""
        return self.image - self.reference.full

    @cached_property
    def squared(self) -> Tensor:
        """Squared error, HU^2."""
        return self.error.square()

    @cached_property
    def biases(self) -> dict[str, Tensor]:
        """Mean error inside each tissue, HU: (n,); NaN where there is none."""
        return {tissue: self.reference.mean(self.error, tissue) for tissue in TISSUES}

    @cached_property
    def clipped_squared(self) -> Tensor:
        """Squared error of values clipped to -1024..1900 HU as the benchmark does, HU^2."""
        return clip(self.image).sub_(self.reference.clipped).square_()

    @cached_property
    def shown(self) -> Tensor:
        """The image as displayed, 0..1."""
        return window(self.image, self.reference.window)

    @cached_property
    def shown_squared(self) -> Tensor:
        """Squared error as displayed."""
        return (self.shown - self.reference.shown).square_()

    @cached_property
    def mean_square(self) -> Tensor:
        """Mean squared error of a whole slice, HU^2: (n,)."""
        return self.squared.mean((1, 2))

    @cached_property
    def removed(self) -> Tensor:
        """Low dose less image inside the body, HU; 0 outside."""
        return (self.reference.low - self.image).mul_(self.reference.masks["body"])

    @cached_property
    def ssim(self) -> Tensor:
        """Map of structural similarity as displayed, (n, rows - 6, columns - 6)."""
        return ssim_map(self.shown, self.reference.shown, self.reference.shown_sum)


@dataclass(frozen=True)
class Metric:
    """A named measure of a slice; `target` says what a perfect slice has."""

    function: Callable[[Comparison], Tensor]
    unit: str
    range: str
    target: Literal["high", "low", "zero", "one"]
    source: str


def l1(c: Comparison) -> Tensor:
    """Mean absolute difference over the paper's range."""
    return c.error.abs().mean((1, 2)) / HU_RANGE


def nmse(c: Comparison) -> Tensor:
    """Squared error over the reference's energy, over the paper's range; NaN for an empty slice."""
    return _ratio(c.mean_square, c.reference.energy)


def psnr(c: Comparison) -> Tensor:
    """10 log10(MAX^2 / MSE) in dB, MAX the reference slice's maximum (Eq. 5, slip mended)."""
    peak = c.reference.peak
    return _decibel(torch.where(peak > 0, peak.square(), torch.nan), c.mean_square)


def mutual_information(c: Comparison) -> Tensor:
    """Mutual information in nats over a 256 x 256 histogram of [0, 1]."""
    codes = grey_levels(c.image).mul_(BINS).add_(c.reference.codes)
    joint = torch.stack([torch.bincount(row, minlength=BINS * BINS) for row in codes.flatten(1)])
    p = joint.reshape(-1, BINS, BINS) / codes[0].numel()
    shared = _entropy(p.sum(2)) + _entropy(p.sum(1)) - _entropy(p)
    return torch.where(c.error.sum((1, 2)).isnan(), torch.nan, shared)


def rmse(c: Comparison) -> Tensor:
    """Root mean squared error in HU, both clipped to -1024..1900 HU as the benchmark does."""
    return c.clipped_squared.mean((1, 2)).sqrt()


def rmse_body(c: Comparison) -> Tensor:
    """Root mean squared error in HU inside the body; NaN without body."""
    return c.reference.mean(c.clipped_squared, "body").sqrt()


def psnr_window(c: Comparison) -> Tensor:
    """PSNR in dB inside the anatomy's display window, data range 1."""
    return _decibel(1, c.shown_squared.mean((1, 2)))


def psnr_window_body(c: Comparison) -> Tensor:
    """PSNR in dB inside the display window and inside the body; NaN without body."""
    return _decibel(1, c.reference.mean(c.shown_squared, "body"))


def ssim_window(c: Comparison) -> Tensor:
    """Structural similarity inside the display window (uniform 7x7, data range 1)."""
    return c.ssim.mean((1, 2))


def ssim_window_body(c: Comparison) -> Tensor:
    """Structural similarity inside the display window, averaged inside the body."""
    body = c.reference.body_of_windows
    return _ratio(dot(c.ssim, body), body.sum((1, 2)))


def tissue_bias(c: Comparison, *, tissue: str) -> Tensor:
    """Mean difference from the reference in HU inside a tissue; NaN where there is none."""
    return c.biases[tissue]


def tissue_sd(c: Comparison, *, tissue: str) -> Tensor:
    """Standard deviation in HU of the difference from the reference inside a tissue."""
    power = c.reference.mean(c.squared, tissue)
    return (power - c.biases[tissue].square()).clamp_min(0).sqrt()


def noise_removed(c: Comparison) -> Tensor:
    """Share of the added noise's power that is gone, inside the body: 1 all, 0 none, below 0 worse.

    1 - |image - full|^2 / |low - full|^2; NaN where the low-dose slice equals the reference.
    """
    _, power = c.reference.noise_moments
    return 1 - _ratio(c.reference.mean(c.squared, "body"), power)


def noise_likeness(c: Comparison) -> Tensor:
    """Correlation of what was removed with the true noise, inside the body; NaN if nothing was.

    Below one, structure was removed with the noise or noise was left.
    """
    mean, power = c.reference.noise_moments
    size = c.reference.sizes["body"]
    removed = c.removed.sum((1, 2)) / size
    shared = dot(c.removed, c.reference.noise) / size - removed * mean
    spread = dot(c.removed, c.removed) / size - removed.square()
    return _ratio(shared, (spread * (power - mean.square())).clamp_min(0).sqrt())


def edge_sharpness(c: Comparison) -> Tensor:
    """Share of the reference's edge gradient that is kept, inside the body: below 1 is blurred.

    Sum of grad(image).grad(full) over |grad(full)|^2, on the 5 % steepest pixels of the reference.
    """
    (y, x), (reference_y, reference_x) = gradient(c.image), c.reference.slope
    kept = y.mul_(reference_y).addcmul_(x, reference_x)
    return _ratio(c.reference.mean(kept, "edges"), c.reference.steepness)


DEFINITION = 2
"""Raised whenever a metric, a region or what is averaged changes: figures of two definitions are
not compared. 2: the restored image is measured as delivered, in whole HU."""

METRICS: dict[str, Metric] = {
    "l1": Metric(l1, "1", "0..1", "low", "paper, Table I"),
    "nmse": Metric(nmse, "1", "0..", "low", "paper, Table I"),
    "psnr": Metric(psnr, "dB", "..inf", "high", "paper, Eq. 5 and Table I"),
    "mi": Metric(mutual_information, "nat", "0..5.55", "high", "paper, Table I"),
    "psnr_window": Metric(psnr_window, "dB", "..inf", "high", "benchmark"),
    "ssim_window": Metric(ssim_window, "1", "-1..1", "high", "benchmark"),
    "rmse": Metric(rmse, "HU", "0..", "low", "benchmark"),
    "psnr_window_body": Metric(psnr_window_body, "dB", "..inf", "high", "benchmark, in the body"),
    "ssim_window_body": Metric(ssim_window_body, "1", "-1..1", "high", "benchmark, in the body"),
    "rmse_body": Metric(rmse_body, "HU", "0..", "low", "benchmark, in the body"),
    "noise_removed": Metric(noise_removed, "1", "..1", "high", "physics"),
    "noise_likeness": Metric(noise_likeness, "1", "-1..1", "high", "physics"),
    "edge_sharpness": Metric(edge_sharpness, "1", "0..", "one", "physics"),
} | {
    f"{name}_{tissue}": Metric(partial(function, tissue=tissue), "HU", span, target, "physics")
    for tissue in TISSUES
    for name, function, span, target in (
        ("bias", tissue_bias, "..", "zero"),
        ("sd", tissue_sd, "0..", "low"),
    )
}


def measure(image: Tensor, reference: Reference) -> dict[str, Tensor]:
    """Every metric of `image` (n, rows, columns) float32 HU: name to (n,) float32 on the CPU."""
    comparison = Comparison(image, reference)
    return {name: metric.function(comparison).cpu() for name, metric in METRICS.items()}


def ssim_map(x: Tensor, y: Tensor, sum_y: Tensor) -> Tensor:
    """Structural similarity of `x` and `y` (n, rows, columns), data range 1, border left out.

    sum_y: window sums of `y`, which serve for every image that is held against it. All is counted
    in sums over windows, c1 and c2 with it, so that nothing is divided before the end. Only the sum
    of the two variances enters, so that one window of x^2 + y^2 serves for both.
    """
    pixels = SSIM_SIZE**2
    c1, c2 = (0.01 * pixels) ** 2, 0.03**2 * pixels * (pixels - 1)
    sum_x = box_fold(x, SSIM_SIZE, torch.add)
    products, squares = sum_x * sum_y, sum_x.square_().addcmul_(sum_y, sum_y)
    covariance = box_fold(x * y, SSIM_SIZE, torch.add).mul_(pixels).sub_(products)
    variances = box_fold((x * x).addcmul_(y, y), SSIM_SIZE, torch.add).mul_(pixels).sub_(squares)
    alike = products.mul_(2).add_(c1).mul_(covariance.mul_(2).add_(c2))
    return alike.div_(squares.add_(c1).mul_(variances.add_(c2)))


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).flatten(1).sum(1)


def _decibel(signal: Tensor | float, noise: Tensor) -> Tensor:
    """10 log10 of a power ratio; +inf where there is no noise."""
    return 10 * torch.log10(signal / noise)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Quotient; NaN wherever the divisor is zero."""
    return torch.where(below > 0, above / below, torch.nan)
