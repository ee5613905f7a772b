"""The blocks against slow, plain versions of what the papers say."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from hqinet.networks.blocks import (
    ASPP,
    SCSE,
    Bottleneck,
    ConvNorm,
    DecoderBlock,
    Reconstruction,
    conv_of_upsampled,
    norm_layer,
    upsample,
)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in evaluation mode and float64, all parameters and running statistics random."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    for parameter in module.parameters():
        parameter.data.sub_(0.6)
    return module


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_conv(x: np.ndarray, weight: np.ndarray, dilation: int = 1) -> np.ndarray:
    """3x3 cross-correlation with zero padding, one pixel and tap at a time."""
    outputs, inputs = weight.shape[:2]
    rows, columns = x.shape[1:]
    y = np.zeros((outputs, rows, columns))
    for o in range(outputs):
        for r in range(rows):
            for c in range(columns):
                for i in range(inputs):
                    for a in range(3):
                        for b in range(3):
                            rr, cc = r + (a - 1) * dilation, c + (b - 1) * dilation
                            if 0 <= rr < rows and 0 <= cc < columns:
                                y[o, r, c] += weight[o, i, a, b] * x[i, rr, cc]
    return y


def plain_norm(x: np.ndarray, norm: nn.BatchNorm2d) -> np.ndarray:
    mean, var, weight, bias = (
        t.detach().numpy()[:, None, None]
        for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / np.sqrt(var + norm.eps) * weight + bias


def plain_pointwise(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.einsum("oi,irc->orc", weight[:, :, 0, 0], x)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_scse_weights_channels_and_pixels_and_adds_both() -> None:
    block = randomised(SCSE(32, reduction=16))
    x = noise(1, 32, 5, 7)
    image = x[0].numpy()
    w1, b1 = (t.detach().numpy() for t in (block.squeeze.weight, block.squeeze.bias))
    w2, b2 = (t.detach().numpy() for t in (block.excite.weight, block.excite.bias))
    w3, b3 = (t.detach().numpy() for t in (block.spatial.weight, block.spatial.bias))
    assert w1.shape == (2, 32, 1, 1)
    hidden = np.maximum(w1[:, :, 0, 0] @ image.mean((1, 2)) + b1, 0)
    channel = sigmoid(w2[:, :, 0, 0] @ hidden + b2)
    pixel = sigmoid(np.einsum("c,crk->rk", w3[0, :, 0, 0], image) + b3[0])
    expected = image * channel[:, None, None] + image * pixel[None]
    np.testing.assert_allclose(block(x)[0].detach().numpy(), expected, rtol=1e-12)


def test_aspp_has_five_branches_with_depthwise_separable_rates() -> None:
    block = randomised(ASPP(3, 4, rates=(1, 2, 3), norm="batch"))
    x = noise(1, 3, 8, 6)
    image = x[0].numpy()

    def point(module: ConvNorm, y: np.ndarray) -> np.ndarray:
        y = plain_pointwise(y, module.conv.weight.detach().numpy())
        return np.maximum(plain_norm(y, module.norm), 0)

    branches = [point(block.pointwise, image)]
    for rate, (depthwise, pointwise) in zip((1, 2, 3), block.atrous, strict=True):
        weight = depthwise.conv.weight.detach().numpy()
        each = [plain_conv(image[i : i + 1], weight[i : i + 1], rate) for i in range(3)]
        y = np.maximum(plain_norm(np.concatenate(each), depthwise.norm), 0)
        branches.append(point(pointwise, y))
    pooled = block.pooled.weight.detach().numpy()[:, :, 0, 0] @ image.mean((1, 2))
    pooled = np.maximum(pooled + block.pooled.bias.detach().numpy(), 0)
    branches.append(np.broadcast_to(pooled[:, None, None], branches[0].shape))
    expected = point(block.project, np.concatenate(branches))
    np.testing.assert_allclose(block(x)[0].detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_aspp_trains_on_a_batch_of_one() -> None:
    block = ASPP(8, 8, norm="batch").train()
    assert block(torch.randn(1, 8, 4, 4)).shape == (1, 8, 4, 4)


@given(
    scale=st.sampled_from([2, 4, 8]),
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    channels=st.integers(1, 4),
    outputs=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_mixing_channels_before_upsampling_changes_nothing(
    scale: int, rows: int, columns: int, channels: int, outputs: int, seed: int
) -> None:
    x = noise(2, channels, rows, columns, seed=seed)
    weight = noise(outputs, channels, 3, 3, seed=seed + 1)
    size = (rows * scale, columns * scale)
    expected = F.conv2d(upsample(x, size), weight, padding=1)
    torch.testing.assert_close(conv_of_upsampled(x, weight, size), expected, rtol=0, atol=1e-12)


def test_mixing_first_has_the_same_gradients() -> None:
    x, weight = noise(1, 3, 4, 5).requires_grad_(), noise(2, 3, 3, 3).requires_grad_()
    target = noise(1, 2, 16, 20, seed=9)
    direct = F.conv2d(upsample(x, (16, 20)), weight, padding=1)
    expected = torch.autograd.grad((direct * target).sum(), (x, weight))
    ours = conv_of_upsampled(x, weight, (16, 20))
    for one, other in zip(
        torch.autograd.grad((ours * target).sum(), (x, weight)), expected, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("scales", [(8, 4, 2, 1), (16, 8, 4, 2)])
def test_reconstruction_is_upsample_concat_conv(norm: str, scales: tuple[int, ...]) -> None:
    block = randomised(Reconstruction((4, 3, 2, 2), scales, 5, norm=norm))
    size = (32, 48)
    maps = [
        noise(2, c, size[0] // s, size[1] // s, seed=s)
        for c, s in zip((4, 3, 2, 2), scales, strict=True)
    ]
    full = torch.cat([x if x.shape[2:] == size else upsample(x, size) for x in maps], dim=1)
    expected = block.out(block.mix(full))
    torch.testing.assert_close(block(maps, size), expected, rtol=0, atol=1e-11)


def test_bottleneck_is_its_branch_plus_its_shortcut() -> None:
    same = randomised(Bottleneck(8, 8, norm="none"))
    x = noise(1, 8, 6, 6)
    branch = same.expand(same.conv(same.reduce(x)))
    torch.testing.assert_close(same(x), F.relu(branch + x))
    assert isinstance(same.shortcut, nn.Identity)
    halving = Bottleneck(8, 16, stride=2, norm="batch")
    assert halving(torch.zeros(2, 8, 6, 6)).shape == (2, 16, 3, 3)
    assert not isinstance(halving.shortcut, nn.Identity)


def test_scse_of_a_bottleneck_acts_before_the_addition() -> None:
    block = randomised(Bottleneck(8, 8, norm="none", scse=True))
    x = noise(1, 8, 4, 4)
    branch = block.expand(block.conv(block.reduce(x)))
    torch.testing.assert_close(block(x), F.relu(block.scse(branch) + x))


def test_decoder_block_doubles_and_takes_the_skip() -> None:
    block = randomised(DecoderBlock(6, 10, 4, narrowed=3, norm="batch"))
    x, skip = noise(1, 6, 3, 5), noise(1, 10, 6, 10, seed=2)
    up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    joined = torch.cat([up, block.narrow(skip)], dim=1)
    assert joined.shape == (1, 9, 6, 10)
    torch.testing.assert_close(block(x, skip), block.refine(block.mix(joined)))


def test_norms_are_what_they_are_called() -> None:
    assert isinstance(norm_layer("batch", 8), nn.BatchNorm2d)
    assert isinstance(norm_layer("group", 48), nn.GroupNorm)
    assert norm_layer("group", 48).num_groups == 16
    assert isinstance(norm_layer("none", 8), nn.Identity)
    assert ConvNorm(2, 2, 3, norm="none").conv.bias is not None
    assert ConvNorm(2, 2, 3, norm="batch").conv.bias is None
