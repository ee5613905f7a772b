"""Parallel-beam projection and back-projection by the Fourier slice theorem.

A projection's Fourier transform is a radial line of the image's; both directions are one 2D FFT and
a Kaiser-Bessel interpolation between its Cartesian grid and the lines (gridding: O'Sullivan 1985;
kernel and oversampling: Beatty et al. 2005), a tenth of the arithmetic of following rays.
Projections are exact for images without frequencies beyond the pixel's.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

_OVERSAMPLING = 2
_KERNEL = 4
"""Width of the interpolation kernel, in samples of the oversampled grid."""
_SHAPE = math.pi * math.sqrt((_KERNEL / _OVERSAMPLING) ** 2 * (_OVERSAMPLING - 0.5) ** 2 - 0.8)


@dataclass(frozen=True)
class ParallelBeam:
    """A parallel-beam acquisition of a square image.

    Attributes:
        size: rows and columns of the image.
        views: projections over half a turn.

    Detector elements are as wide as a pixel; there are `bins` of them, more than the diagonal, the
    middle of the image falling on element `bins // 2`.
    """

    size: int
    views: int

    @property
    def bins(self) -> int:
        """Detector elements: the diagonal, rounded up to a length that FFTs like."""
        return math.ceil(math.sqrt(2) * self.size / 64) * 64


def project(image: Tensor, beam: ParallelBeam) -> Tensor:
    """Return line integrals in units of value times pixel.

    `image`: (n, size, size) float32. Returns (n, views, bins) float32. Raises ValueError for
    another size.
    """
    if tuple(image.shape[1:]) != (beam.size, beam.size):
        raise ValueError(f"images are {tuple(image.shape[1:])}, the beam is of {beam.size}")
    lines = [_lines_of_image(slice_, beam) for slice_ in image]
    # The image's middle is the origin: shift it from element 0 to element bins // 2.
    projections = torch.fft.irfft(torch.stack(lines), n=beam.bins)
    return projections.roll(beam.bins // 2, dims=-1)


def back_project(projections: Tensor, beam: ParallelBeam, response: Tensor) -> Tensor:
    """Filter projections and smear them back over the image (filtered back-projection).

    `projections`: (n, views, bins) float32; `response`: (bins // 2 + 1,) the filter at the
    frequencies `frequencies(beam)`, `ramp(beam)` for plain reconstruction. Returns (n, size, size)
    float32 in units of value per pixel.
    """
    lines = torch.fft.rfft(projections.roll(-(beam.bins // 2), dims=-1)) * response
    # A real image's spectrum has two equal halves, but one zero and one Nyquist frequency.
    weights = torch.full_like(response, 2.0)
    weights[0] = weights[-1] = 1.0
    lines = lines * (weights * math.pi / (beam.views * beam.bins))
    return torch.stack([_image_of_lines(line, beam) for line in lines])


def frequencies(beam: ParallelBeam, device: torch.device | str = "cpu") -> Tensor:
    """Return the frequencies of a projection, cycles a pixel, (bins // 2 + 1,)."""
    return torch.fft.rfftfreq(beam.bins, device=device)


def ramp(beam: ParallelBeam, device: torch.device | str = "cpu") -> Tensor:
    """Return the response of the ramp filter (Ram-Lak) at `frequencies(beam)`.

    From its samples in space (Kak & Slaney, eq. 3.61), which leave no offset in the mean.
    """
    index = torch.fft.ifftshift(torch.arange(beam.bins, device=device) - beam.bins // 2)
    odd = index % 2 == 1
    samples = torch.where(odd, -1 / (math.pi * index.double()) ** 2, 0.0)
    samples[0] = 0.25
    return torch.fft.rfft(samples).real.float()


@lru_cache(maxsize=4)
def _grid(beam: ParallelBeam, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return grid indices and weights (points, 16) of the interpolation, and the taper (size,)."""
    side = _OVERSAMPLING * beam.size
    angle = torch.arange(beam.views, device=device, dtype=torch.float64) * (math.pi / beam.views)
    radius = torch.fft.rfftfreq(beam.bins, device=device, dtype=torch.float64) * side
    x = (torch.cos(angle)[:, None] * radius).flatten()
    y = (torch.sin(angle)[:, None] * radius).flatten()
    (xs, wx), (ys, wy) = _taps(x, side), _taps(y, side)
    index = (ys[:, :, None] * side + xs[:, None, :]).flatten(1)
    weight = (wy[:, :, None] * wx[:, None, :]).flatten(1).float()
    position = (torch.arange(beam.size, device=device) - beam.size // 2).double() / side
    argument = _SHAPE**2 - (math.pi * _KERNEL * position) ** 2
    taper = _KERNEL * torch.sinh(argument.sqrt()) / argument.sqrt()
    return index, weight, (1 / taper).float()


def _taps(position: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return indices and Kaiser-Bessel weights (points, 4) of the samples around each position."""
    first = torch.floor(position - _KERNEL / 2).long() + 1
    near = first[:, None] + torch.arange(_KERNEL, device=position.device)
    distance = (2 * (near - position[:, None]) / _KERNEL).clamp(-1, 1)
    return near % side, torch.special.i0(_SHAPE * (1 - distance**2).sqrt())


def _lines_of_image(image: Tensor, beam: ParallelBeam) -> Tensor:
    """(size, size) to the Fourier transform on the radial lines, (views, bins // 2 + 1) complex."""
    index, weight, taper = _grid(beam, image.device)
    spectrum = torch.view_as_real(torch.fft.fft2(_embedded(image * taper[:, None] * taper)))
    flat = spectrum.reshape(-1, 2)
    total = torch.zeros(len(index), 2, device=image.device)
    for tap, share in _each_tap(index, weight):
        total += flat[tap] * share[:, None]
    return torch.view_as_complex(total).view(beam.views, -1)


def _image_of_lines(lines: Tensor, beam: ParallelBeam) -> Tensor:
    """The adjoint: (views, bins // 2 + 1) complex to (size, size), the real part."""
    index, weight, taper = _grid(beam, lines.device)
    side = _OVERSAMPLING * beam.size
    values = torch.view_as_real(lines.flatten())
    grid = torch.zeros(side * side, 2, device=lines.device)
    for tap, share in _each_tap(index, weight):
        grid.index_add_(0, tap, values * share[:, None])
    spectrum = torch.view_as_complex(grid).view(side, side)
    image = torch.fft.ifft2(spectrum, norm="forward").real
    half = beam.size // 2
    image = image.roll((half, half), (0, 1))[: beam.size, : beam.size]
    return image * taper[:, None] * taper


def _each_tap(index: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(index.unbind(1), weight.unbind(1), strict=True)


def _embedded(image: Tensor) -> Tensor:
    """Put an image into the oversampled grid, its middle at the origin."""
    size, half = image.shape[-1], image.shape[-1] // 2
    extra = (_OVERSAMPLING - 1) * size
    return F.pad(image, (0, extra, 0, extra)).roll((-half, -half), (0, 1))
