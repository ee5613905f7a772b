"""HQINet (Lu et al. 2021): three low-dose slices in, the middle full-dose slice out.

A network here is a module `(windows, noise) -> restored`: `windows` (n, 3, h, w) float32, three
successive low-dose slices in [0, 1] (`hqinet.intensity.normalise`); `noise` (n,) float32, the noise
level of the middle slice in the same unit; `restored` (n, 1, h, w). `build` makes one from a
recipe. `hqinet.restoration.restore.Restorer` puts HU and the noise estimate around it.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hqinet.networks.blocks import ASPP, SCSE, Bottleneck, ConvNorm, DecoderBlock, Reconstruction
from hqinet.networks.recipe import HQINetRecipe, ModelRecipe, REDCNNRecipe
from hqinet.networks.redcnn import REDCNN

STAGE_DEPTHS = (3, 4, 6, 3)
STAGE_WIDTHS = (256, 512, 1024, 2048)
DECODER_WIDTHS = (256, 128, 64, 64)
STEM_WIDTH = 64
ASPP_WIDTH = 256
NARROWED_SKIP = 48
RECONSTRUCTION_WIDTH = 64
DETAIL_SIZE = 5
"""Side in pixels of the neighbourhood whose mean is taken off to see noise and fine detail."""
ENCODER_STRIDE = 8
"""Of stages two to four, which halve the map once each."""
INIT_SD = 0.01
INPUT_CHANNELS = 3


def build(recipe: ModelRecipe, seed: int) -> nn.Module:
    """Return the untrained network of a recipe; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match recipe:
            case HQINetRecipe():
                return HQINet(recipe)
            case REDCNNRecipe():
                return REDCNN(recipe.channels)
            case _:
                assert_never(recipe)


class HQINet(nn.Module):
    """Encoder of ResNet-50 with scSE, ASPP, four decoder blocks, multi-scale reconstruction."""

    def __init__(self, recipe: HQINetRecipe) -> None:
        super().__init__()
        self.output = recipe.output
        norm = recipe.norm
        narrowed = recipe.channels(NARROWED_SKIP)
        stem = recipe.channels(STEM_WIDTH)
        stages = [recipe.channels(width) for width in STAGE_WIDTHS]
        decoders = [recipe.channels(width) for width in DECODER_WIDTHS]
        first_stride, second_stride = recipe.stem_strides
        self.multiple = ENCODER_STRIDE * first_stride * second_stride

        inputs = 2 * INPUT_CHANNELS if recipe.output == "noise_residual" else INPUT_CHANNELS
        self.stem = ConvNorm(inputs, stem, 3, stride=first_stride, norm=norm)
        self.stem_down = ConvNorm(stem, stem, 3, stride=second_stride, norm=norm)
        self.stages = nn.ModuleList(
            _stage(before, after, depth, first=before == stem, recipe=recipe)
            for before, after, depth in zip([stem, *stages], stages, STAGE_DEPTHS, strict=False)
        )
        aspp = recipe.channels(ASPP_WIDTH)
        self.aspp = ASPP(stages[-1], aspp, norm=norm)
        skips = [*reversed(stages[:-1]), stem]
        self.decoder = nn.ModuleList(
            DecoderBlock(before, skip, after, narrowed=narrowed, norm=norm)
            for before, skip, after in zip([aspp, *decoders], skips, decoders, strict=False)
        )
        self.reconstruction = Reconstruction(
            decoders,
            [scale * first_stride for scale in (8, 4, 2, 1)],
            recipe.channels(RECONSTRUCTION_WIDTH),
            norm=norm,
        )
        initialise(self, recipe)

    def forward(self, windows: Tensor, noise: Tensor) -> Tensor:
        """`(n, 3, h, w) in [0, 1], (n,) -> (n, 1, h, w)`, for any h and w."""
        middle = windows[:, 1:2]
        if self.output == "direct":
            return self._network(windows)
        if self.output == "residual":
            return middle + self._network(windows)
        scale = noise.view(-1, 1, 1, 1)
        inputs = torch.cat([windows, torch.asinh(detail(windows) / scale)], dim=1)
        return middle + scale * self._network(inputs)

    def _network(self, x: Tensor) -> Tensor:
        """Pad to whole multiples, encode, decode, reconstruct, crop back."""
        rows, columns = x.shape[-2:]
        size = _whole(rows, self.multiple), _whole(columns, self.multiple)
        x = _padded(x, size)
        skips = [self.stem(x)]
        x = self.stem_down(skips[0])
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        x = self.aspp(skips.pop())
        maps = []
        for block in self.decoder:
            x = block(x, skips.pop())
            maps.append(x)
        return _cropped(self.reconstruction(maps, size), rows, columns)


def detail(images: Tensor) -> Tensor:
    """Subtract from each pixel the mean of its neighbourhood, as far as it lies in the image.

    What is left is noise and edges, of the same size in lung and in bone. In units of the noise
    level it has a standard deviation of about one: in the images themselves noise is a hundredth
    of the contrasts, and a network without norms may not find it.

    `(n, c, h, w) -> (n, c, h, w)`.
    """
    mean = F.avg_pool2d(
        images, DETAIL_SIZE, stride=1, padding=DETAIL_SIZE // 2, count_include_pad=False
    )
    return images - mean


def _whole(size: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `size`.

    To an export the count of multiples is a number that it knows nothing of: all maps then have
    multiples of it for their sizes, where formulas of `size` took longest to export and to read.
    """
    count = (size + multiple - 1) // multiple
    if torch.compiler.is_exporting():
        count = torch.scalar_tensor(count, dtype=torch.int64).item()
        torch._check(count >= 1)  # noqa: SLF001 - as torch's guide to export has it
    return count * multiple


def _padded(x: Tensor, size: Sequence[int]) -> Tensor:
    """The last row and column repeated up to `size`."""
    for axis, length in enumerate(size, 2):
        index = torch.arange(length, device=x.device).clamp(max=x.shape[axis] - 1)
        x = x.index_select(axis, index)
    return x


def _cropped(x: Tensor, rows: int, columns: int) -> Tensor:
    """`x[..., :rows, :columns]` as a copy: torch.export would have to prove whether it is one."""
    for axis, size in ((2, rows), (3, columns)):
        x = x.index_select(axis, torch.arange(size, device=x.device))
    return x


def _stage(
    inputs: int, outputs: int, depth: int, *, first: bool, recipe: HQINetRecipe
) -> nn.Sequential:
    """One of the paper's four residual blocks: `depth` bottlenecks, closed by scSE."""
    each = recipe.scse == "bottleneck"
    blocks = [
        Bottleneck(
            inputs if i == 0 else outputs,
            outputs,
            stride=2 if i == 0 and not first else 1,
            norm=recipe.norm,
            scse=each,
        )
        for i in range(depth)
    ]
    named = OrderedDict((f"bottleneck{i + 1}", block) for i, block in enumerate(blocks))
    if not each:
        named["scse"] = SCSE(outputs)
    return nn.Sequential(named)


def initialise(network: HQINet, recipe: HQINetRecipe) -> None:
    """Draw the weights: `paper`, a Gaussian of SD 0.01 cut at two SD; `he`, He et al. 2015.

    Biases are 0, norms 1 and 0. With `he` each bottleneck starts as its shortcut (Zhang et al.
    2019, Fixup), without which maps would double in variance sixteen times where no norm follows.
    Where the output is a residual, the last convolution starts at zero, so that the untrained
    network returns its input.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            if recipe.init == "paper":
                nn.init.trunc_normal_(module.weight, std=INIT_SD, a=-2 * INIT_SD, b=2 * INIT_SD)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if recipe.init == "he":
        for module in network.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.expand.conv.weight)
    if recipe.output != "direct":
        nn.init.zeros_(network.reconstruction.out.weight)
