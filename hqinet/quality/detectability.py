"""Can a low-contrast lesion be seen: a channelised Hotelling observer on slices with and without.

Sources: Barrett et al. 1998 (Laguerre-Gauss channels), Abbey & Barrett 2001 (channels that are
differences of Gaussians, internal noise), Wunderlich & Abbey 2015 (the observer for CT), Gallas
2003 (training and testing on different images). On the images of the FDA's LCD-CT toolbox it gives
the toolbox's own indices: `benchmarks/observer.py`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import eval_laguerre, ndtr

Array = NDArray[np.float64]
CHANNELS = 6
"""Laguerre-Gauss channels."""
BANDS = 3
"""Difference-of-Gaussians channels: the sparse ones of Abbey & Barrett 2001, as the next three."""
FIRST_BAND = 0.015
"""SD of the narrowest, cycles a pixel."""
NEXT_BAND = 2.0
"""Each SD over the one before."""
BAND_RATIO = 2.0
"""SD of the wider Gaussian of a channel over that of the narrower one."""
LEAST = 2
"""Images of a kind for each channel, without which a covariance cannot be estimated."""
RESAMPLED = 400
"""Samples of a bootstrap over images."""
INTERVAL = (2.5, 97.5)
"""Percentiles of an interval."""


@dataclass(frozen=True)
class Detection:
    """What an observer makes of two kinds of images.

    Attributes:
        index: detectability d', the distance of its two answers in their standard deviation.
        interval: 95 % bootstrap interval of it, images drawn anew.
        auc: chance that it prefers the image with the lesion, `Phi(d' / sqrt 2)`.
    """

    index: float
    interval: tuple[float, float]
    auc: float


def lesion(size: int, pixel: float, *, diameter: float, contrast: float, edge: float) -> Array:
    """Return a round lesion in the middle of (size, size) pixels, HU to be added to a slice.

    `pixel`, `diameter`, `edge`: mm; the border falls off as a logistic function of that width.
    """
    axis = (np.arange(size) - (size - 1) / 2) * pixel
    radius = np.hypot(axis[:, None], axis)
    return contrast / (1 + np.exp(np.clip((radius - diameter / 2) / edge, -50, 50)))


def laguerre_gauss(size: int, width: float, count: int = CHANNELS) -> Array:
    """Return radial Laguerre-Gauss channels (count, size * size), orthonormal, width in pixels.

    `sqrt(2) / width exp(-pi r^2 / width^2) L_j(2 pi r^2 / width^2)` (Barrett et al. 1998).
    """
    axis = np.arange(size) - (size - 1) / 2
    square = 2 * np.pi * (axis[:, None] ** 2 + axis**2) / width**2
    shape = np.sqrt(2) / width * np.exp(-square / 2)
    return np.stack([(shape * eval_laguerre(j, square)).ravel() for j in range(count)])


def difference_of_gaussians(size: int, pixel: float = 1.0) -> Array:
    """Return radial difference-of-Gaussians channels (BANDS, size * size): bands of frequencies.

    `exp(-(f / Q s)^2 / 2) - exp(-(f / s)^2 / 2)` at frequency f (Abbey & Barrett 2001), around the
    middle of the image. `pixel`: side of a pixel over that of the display for which the bands are.
    """
    axis = np.fft.fftfreq(size)
    square = (axis[:, None] ** 2 + axis**2) / pixel**2
    spread = FIRST_BAND * NEXT_BAND ** np.arange(BANDS)[:, None, None]
    bands = np.exp(-square / (BAND_RATIO * spread) ** 2 / 2) - np.exp(-square / spread**2 / 2)
    to_middle = np.exp(-1j * np.pi * (size - 1) * axis)
    channels = np.fft.ifft2(bands * to_middle[:, None] * to_middle).real
    return channels.reshape(BANDS, -1)


def detect(
    present: Array,
    absent: Array,
    channels: Array,
    *,
    internal_noise: float = 0.0,
    seed: int = 0,
) -> Detection:
    """Return how well the observer tells images with the lesion from those without.

    `present`, `absent`: (n, size, size) HU, lesion in the middle; `channels`: (count, size * size).
    It learns on even images what it is tested on with odd ones, and the other way round.
    `internal_noise`: of the observer, SD as a multiple of each channel's own. ValueError for fewer
    than LEAST images of a kind for each channel in each half.
    """
    least = 2 * LEAST * len(channels)
    if min(len(present), len(absent)) < least:
        raise ValueError(
            f"{len(present)} images with and {len(absent)} without a lesion: the observer with "
            f"{len(channels)} channels needs {least} of each"
        )
    kinds = [images.reshape(len(images), -1) @ channels.T for images in (present, absent)]
    random = np.random.default_rng(seed)
    index = detectability_index(*kinds, internal_noise)
    again = []
    for _ in range(RESAMPLED):
        drawn = [seen[drawn_anew(len(seen), random)] for seen in kinds]
        again.append(detectability_index(*drawn, internal_noise))
    low, high = np.percentile(again, INTERVAL)
    return Detection(index, (float(low), float(high)), float(ndtr(index / np.sqrt(2))))


def drawn_anew(count: int, random: np.random.Generator) -> NDArray[np.intp]:
    """Return indices drawn with replacement, those of even and of odd images each from their own.

    So that no image is learned and tested on at once.
    """
    drawn = np.arange(count)
    for half in (0, 1):
        own = drawn[half::2].copy()
        drawn[half::2] = own[random.integers(len(own), size=len(own))]
    return drawn


def detectability_index(present: Array, absent: Array, internal_noise: float = 0.0) -> float:
    """Return d' of the observer from what its channels see of each image, (n, channels) each.

    It learns on even images what it is tested on with odd ones, and the other way round.
    """
    distances, variances = [], []
    for half in (0, 1):
        learn, test = (
            (present[half::2], absent[half::2]),
            (present[1 - half :: 2], absent[1 - half :: 2]),
        )
        covariance = (np.cov(learn[0].T) + np.cov(learn[1].T)) / 2
        own = internal_noise**2 * np.diag(np.diag(covariance))
        template = np.linalg.solve(covariance + own, learn[0].mean(0) - learn[1].mean(0))
        answers = [kind @ template for kind in test]
        blur = float(template @ own @ template)
        distances.append(answers[0].mean() - answers[1].mean())
        variances.append((answers[0].var(ddof=1) + answers[1].var(ddof=1)) / 2 + blur)
    # Who sees no difference at all has learned nothing: 0, not 0 over 0.
    shares = [
        distance / variance**0.5 if variance > 0 else np.inf * distance if distance else 0.0
        for distance, variance in zip(distances, variances, strict=True)
    ]
    return float(np.mean(shares))
