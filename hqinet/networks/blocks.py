"""The parts HQINet is built of, each named as the papers name it.

Every map is `(n, channels, rows, columns)`. Sources: He et al. 2016 (bottleneck), Roy et al. 2018
(scSE), Chen et al. 2018 (ASPP with depthwise separable convolutions), Lu et al. 2021 (the rest).
"""

from collections.abc import Sequence
from math import gcd
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["batch", "group", "none"]


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """Return the normalisation that follows a convolution with `channels` outputs."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(gcd(32, channels), channels)
    return nn.Identity()


class ConvNorm(nn.Sequential):
    """A convolution that keeps the size (over `stride`), its norm, and a ReLU if `active`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        norm: Norm,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        active: bool = True,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride,
            padding,
            dilation,
            groups,
            bias=norm == "none",
        )
        self.norm = norm_layer(norm, outputs)
        self.act = nn.ReLU(inplace=True) if active else nn.Identity()


class SCSE(nn.Module):
    """Concurrent spatial and channel squeeze and excitation, branches added (Roy et al. 2018).

    `x * sigmoid(W2 relu(W1 mean(x))) + x * sigmoid(w . x)`; shape is kept.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        squeezed = max(channels // reduction, 1)
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, channels, 1)
        self.spatial = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, c, h, w) -> (n, c, h, w)`."""
        mean = x.mean((2, 3), keepdim=True)
        channel = torch.sigmoid(self.excite(F.relu(self.squeeze(mean))))
        return x * (channel + torch.sigmoid(self.spatial(x)))


class Bottleneck(nn.Module):
    """Residual block of ResNet-50: 1x1, 3x3 (which carries the stride), 1x1, and the shortcut.

    With `scse` the excitation acts on the residual branch before the addition, the other reading
    of where scSE sits.
    """

    def __init__(
        self, inputs: int, outputs: int, *, stride: int = 1, norm: Norm, scse: bool = False
    ) -> None:
        super().__init__()
        narrow = outputs // 4
        self.reduce = ConvNorm(inputs, narrow, 1, norm=norm)
        self.conv = ConvNorm(narrow, narrow, 3, stride=stride, norm=norm)
        self.expand = ConvNorm(narrow, outputs, 1, norm=norm, active=False)
        self.scse = SCSE(outputs) if scse else nn.Identity()
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else ConvNorm(inputs, outputs, 1, stride=stride, norm=norm, active=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(n, inputs, h, w) -> (n, outputs, h / stride, w / stride)`."""
        residual = self.scse(self.expand(self.conv(self.reduce(x))))
        return residual.add_(self.shortcut(x)).relu_()


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling with depthwise separable convolutions (Chen et al. 2018).

    Branches: 1x1, one depthwise separable 3x3 for each rate, and image pooling; concatenated and
    mixed by a 1x1. The pooled branch has no norm: its map is one pixel, of which a batch of one
    has no statistics.
    """

    def __init__(
        self, inputs: int, outputs: int, *, rates: Sequence[int] = (6, 12, 18), norm: Norm
    ) -> None:
        super().__init__()
        self.pointwise = ConvNorm(inputs, outputs, 1, norm=norm)
        self.atrous = nn.ModuleList(
            nn.Sequential(
                ConvNorm(inputs, inputs, 3, dilation=rate, groups=inputs, norm=norm),
                ConvNorm(inputs, outputs, 1, norm=norm),
            )
            for rate in rates
        )
        self.pooled = nn.Conv2d(inputs, outputs, 1)
        self.project = ConvNorm(outputs * (len(rates) + 2), outputs, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, inputs, h, w) -> (n, outputs, h, w)`."""
        pooled = F.relu(self.pooled(x.mean((2, 3), keepdim=True)))
        branches = [self.pointwise(x), *(branch(x) for branch in self.atrous)]
        return self.project(torch.cat([*branches, pooled.expand_as(branches[0])], dim=1))


class DecoderBlock(nn.Module):
    """Bilinear 2x up, concatenation with the narrowed encoder map, two 3x3 convolutions."""

    def __init__(
        self, inputs: int, skip: int, outputs: int, *, narrowed: int = 48, norm: Norm
    ) -> None:
        super().__init__()
        self.narrow = ConvNorm(skip, narrowed, 1, norm=norm)
        self.mix = ConvNorm(inputs + narrowed, outputs, 3, norm=norm)
        self.refine = ConvNorm(outputs, outputs, 3, norm=norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """`(n, inputs, h, w), (n, skip, 2h, 2w) -> (n, outputs, 2h, 2w)`."""
        up = upsample(x, skip.shape[-2:])
        return self.refine(self.mix(torch.cat([up, self.narrow(skip)], dim=1)))


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear upsampling to `size` (rows, columns), pixel centres aligned.

    To the size of the map it meets, not by a factor: torch.export then has nothing to prove.
    """
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def conv_of_upsampled(x: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
    """3x3 convolution (zero padding) of the bilinearly upsampled map, mixing channels first.

    A convolution is the sum of nine shifted channel mixings; mixing channels commutes with
    upsampling, and shifting along one axis with upsampling along the other. So channels are mixed
    at low resolution, then columns and rows are upsampled, shifted and summed one after the
    other: identical to `conv2d(upsample(x, size), weight, padding=1)` up to rounding, borders
    included, the multiplications growing with the small map and not with the large one.

    `x`: (n, c, h, w); `weight`: (outputs, c, 3, 3); returns (n, outputs, *size).
    """
    wide = (x.shape[2], size[1])
    rows = []
    for row in range(3):
        taps = [F.conv2d(x, weight[:, :, row, column, None, None]) for column in range(3)]
        rows.append(upsample(_shifted_sum([upsample(tap, wide) for tap in taps], axis=3), size))
    return _shifted_sum(rows, axis=2)


def _shifted_sum(taps: Sequence[Tensor], axis: int) -> Tensor:
    """Add the tap before moved up by one and the tap after moved down by one to the middle one.

    What is moved in is zero, as the padding of a convolution is. In place: maps of full resolution
    are as expensive to allocate as to add.
    """
    before, here, after = taps
    rest = here.shape[axis] - 1
    here.narrow(axis, 1, rest).add_(before.narrow(axis, 0, rest))
    here.narrow(axis, 0, rest).add_(after.narrow(axis, 1, rest))
    return here


class Reconstruction(nn.Module):
    """All decoder maps upsampled to full resolution, concatenated, 3x3 convolution, 1x1 to one.

    The 3x3 convolution is split over the maps it would see concatenated. `scales` are the factors
    from each map to full resolution; from `MIX_FIRST` on, `conv_of_upsampled` is quicker.
    """

    MIX_FIRST = 4

    def __init__(
        self, channels: Sequence[int], scales: Sequence[int], outputs: int, *, norm: Norm
    ) -> None:
        super().__init__()
        self.channels, self.scales = tuple(channels), tuple(scales)
        self.mix = ConvNorm(sum(channels), outputs, 3, norm=norm)
        self.out = nn.Conv2d(outputs, 1, 1)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """`[(n, c_i, h / scale_i, w / scale_i)], (h, w) -> (n, 1, h, w)`."""
        conv = self.mix.conv
        weights = conv.weight.split(self.channels, dim=1)
        parts = [
            self._part(x, weight, scale, size)
            for x, weight, scale in zip(maps, weights, self.scales, strict=True)
        ]
        mixed = parts[0]
        for part in parts[1:]:
            mixed.add_(part)
        if conv.bias is not None:
            mixed.add_(conv.bias[:, None, None])
        return self.out(self.mix.act(self.mix.norm(mixed)))

    def _part(self, x: Tensor, weight: Tensor, scale: int, size: Sequence[int]) -> Tensor:
        if scale >= self.MIX_FIRST:
            return conv_of_upsampled(x, weight, size)
        return F.conv2d(x if scale == 1 else upsample(x, size), weight, padding=1)
