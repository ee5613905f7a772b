"""HQINet part by part: shapes, counts, initial weights, gradients, precision."""

from typing import Any

import pytest
import torch
from torch import nn

from hqinet.networks.blocks import ASPP, SCSE, Bottleneck, DecoderBlock
from hqinet.networks.hqinet import HQINet, build
from hqinet.networks.recipe import HQINetRecipe
from hqinet.training.recipe import load_recipe

PAPER = load_recipe("paper").model
SMALL = HQINetRecipe(width=0.125)


def windows(n: int = 2, rows: int = 32, columns: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(n, 3, rows, columns, generator=generator), torch.full((n,), 0.01)


def shapes_of(network: nn.Module, names: list[str], *inputs: torch.Tensor) -> dict[str, Any]:
    """Output shapes of the named parts during one pass."""
    seen: dict[str, Any] = {}
    for name in names:
        module = network.get_submodule(name)
        module.register_forward_hook(
            lambda _m, _i, out, name=name: seen.__setitem__(name, tuple(out.shape[1:]))
        )
    with torch.no_grad():
        network(*inputs)
    return seen


def test_paper_network_has_the_papers_widths_at_every_stage() -> None:
    network = build(PAPER, 0).eval()
    parts = ["stem", "stem_down", "aspp", *(f"stages.{i}" for i in range(4))]
    parts += [f"decoder.{i}" for i in range(4)] + ["reconstruction"]
    seen = shapes_of(network, parts, *windows(1, 37, 50))
    assert seen == {
        "stem": (64, 48, 64),
        "stem_down": (64, 24, 32),
        "stages.0": (256, 24, 32),
        "stages.1": (512, 12, 16),
        "stages.2": (1024, 6, 8),
        "stages.3": (2048, 3, 4),
        "aspp": (256, 3, 4),
        "decoder.0": (256, 6, 8),
        "decoder.1": (128, 12, 16),
        "decoder.2": (64, 24, 32),
        "decoder.3": (64, 48, 64),
        "reconstruction": (1, 48, 64),
    }


def test_strides_of_resnet_keep_its_32() -> None:
    network = build(HQINetRecipe(width=0.125, stem_strides=(2, 2)), 0).eval()
    parts = ["stem", "stages.3", "decoder.3", "reconstruction"]
    seen = shapes_of(network, parts, *windows(1, 40, 70))
    assert [shape[1:] for shape in seen.values()] == [(32, 48), (2, 3), (32, 48), (64, 96)]


@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (15, 17), (16, 16), (31, 48), (33, 64), (21, 95)]
)
@pytest.mark.parametrize("output", ["direct", "residual", "noise_residual"])
def test_any_height_and_width(rows: int, columns: int, output: str) -> None:
    network = build(HQINetRecipe(width=0.125, output=output), 0).eval()
    with torch.no_grad():
        assert network(*windows(2, rows, columns)).shape == (2, 1, rows, columns)


def test_padding_is_by_edge_and_cropped_from_the_end() -> None:
    network = build(HQINetRecipe(width=0.125, init="he"), 0).eval()
    x, noise = windows(1, 32, 48)
    with torch.no_grad():
        x[:, :, 30:] = x[:, :, 29:30]
        x[..., 41:] = x[..., 40:41]
        expected = network(x, noise)[..., :30, :41]
        torch.testing.assert_close(network(x[..., :30, :41], noise), expected)


def test_blocks_are_counted_as_in_resnet_50() -> None:
    network = build(PAPER, 0)
    stages = [sum(isinstance(m, Bottleneck) for m in stage.modules()) for stage in network.stages]
    assert stages == [3, 4, 6, 3]
    assert sum(isinstance(m, SCSE) for m in network.modules()) == 4
    assert all(isinstance(list(stage)[-1], SCSE) for stage in network.stages)
    assert sum(isinstance(m, DecoderBlock) for m in network.modules()) == 4
    (aspp,) = (m for m in network.modules() if isinstance(m, ASPP))
    assert [branch[0].conv.dilation for branch in aspp.atrous] == [(6, 6), (12, 12), (18, 18)]
    assert all(branch[0].conv.groups == 2048 for branch in aspp.atrous)
    each = build(HQINetRecipe(width=0.125, scse="bottleneck"), 0)
    assert sum(isinstance(m, SCSE) for m in each.modules()) == 16


def test_parameter_count_is_as_stated() -> None:
    assert sum(p.numel() for p in build(PAPER, 0).parameters()) == 29_675_253


def test_width_scales_every_map_and_keeps_multiples_of_eight() -> None:
    recipe = HQINetRecipe(width=0.3)
    assert [recipe.channels(c) for c in (48, 64, 256, 2048)] == [16, 16, 80, 616]
    assert HQINetRecipe(width=0.01).channels(64) == 8
    network = build(recipe, 0)
    assert network.stages[3].scse.spatial.in_channels == 616


def test_paper_weights_are_a_gaussian_cut_at_two_sd() -> None:
    network = build(PAPER, 0)
    weights = [m.weight.detach().flatten() for m in network.modules() if isinstance(m, nn.Conv2d)]
    every = torch.cat(weights)
    assert every.abs().max() <= 0.02
    assert abs(every.mean()) < 2e-5
    # A standard Gaussian cut at two SD has SD 0.8796.
    assert every.std().item() == pytest.approx(0.008796, rel=2e-3)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            assert not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()


@pytest.mark.parametrize("output", ["residual", "noise_residual"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_untrained_residual_network_returns_its_input(output: str, norm: str) -> None:
    network = build(HQINetRecipe(width=0.125, output=output, norm=norm, init="he"), 0)
    x, noise = windows(2, 24, 40)
    assert torch.equal(network(x, noise), x[:, 1:2])


def test_maps_keep_their_size_without_norm() -> None:
    network = build(HQINetRecipe(width=0.25, norm="none", init="he"), 0)
    seen: list[float] = []
    network.aspp.register_forward_hook(lambda _m, i, _o: seen.append(float(i[0].detach().std())))
    x, noise = windows()
    network(x - 0.5, noise)
    assert 0.01 < seen[0] < 10


@pytest.mark.parametrize("scse", ["stage", "bottleneck"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_gradients_reach_every_parameter(norm: str, scse: str) -> None:
    network = build(HQINetRecipe(width=0.125, norm=norm, scse=scse, init="he"), 0)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        # Away from the initial zeros, which hold back the gradient for one step.
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    for module in network.modules():
        if isinstance(module, SCSE):
            # So few units at this width that all of them may be off.
            module.squeeze.weight.data.abs_()
            module.squeeze.bias.data.fill_(1.0)
    network(*windows(2, 64, 64)).square().sum().backward()
    missing = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_noise_residual_scales_with_the_noise() -> None:
    """Twice the contrast at twice the noise is the same picture in units of noise."""
    network = build(HQINetRecipe(width=0.125, output="noise_residual", init="he"), 0).eval()
    nn.init.constant_(network.reconstruction.out.weight, 0.1)
    x, noise = windows(1)
    with torch.no_grad():
        added = network(x, noise) - x[:, 1:2]
        doubled = network(x, 2 * noise) - x[:, 1:2]
    assert added.abs().max() > 0
    assert not torch.allclose(added, doubled)
    assert 1 < doubled.abs().mean() / added.abs().mean() < 2.5


def test_same_seed_same_weights_and_no_other_randomness_is_touched() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, other, third = build(SMALL, 1), build(SMALL, 1), build(SMALL, 2)
    assert torch.equal(torch.rand(3), expected)
    states = [network.state_dict() for network in (one, other, third)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["stem.conv.weight"], states[2]["stem.conv.weight"])
    x = windows()
    assert torch.equal(one.eval()(*x), other.eval()(*x))


def test_bf16_is_within_three_per_cent_of_float32() -> None:
    network = build(HQINetRecipe(width=0.25, norm="batch", init="he"), 0).eval()
    x, noise = windows(2, 64, 64)
    with torch.no_grad():
        exact = network(x, noise)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(x, noise)
    error = (rough.float() - exact).square().mean().sqrt() / exact.std()
    assert 0 < error < 0.03


def test_batch_order_does_not_matter_in_evaluation() -> None:
    network = build(SMALL, 0).eval()
    assert isinstance(network, HQINet)
    x, noise = windows(3)
    with torch.no_grad():
        together = network(x, noise)
        alone = torch.cat([network(x[i : i + 1], noise[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
