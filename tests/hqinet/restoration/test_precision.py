"""Mixed precision: near float32, float32 where maps are large, chosen by what is measured."""

import time

import pytest
import torch
from torch import Tensor, nn

from hqinet.networks.hqinet import build
from hqinet.networks.recipe import HQINetRecipe, REDCNNRecipe
from hqinet.restoration.export import deployable
from hqinet.restoration.precision import EXTREME_HU, MEAN_HU, choose, mixed
from hqinet.restoration.restore import Restorer

RECIPE = HQINetRecipe(width=0.125, norm="none", output="noise_residual", init="he")
BODY = torch.ones(2, 96, 128, dtype=torch.bool)


def windows() -> Tensor:
    return 40 + 30 * torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exact() -> Restorer:
    network = build(RECIPE, 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
    return deployable(network, RECIPE)


@torch.inference_mode()
def test_mixed_is_near_float32_and_leaves_it_alone(exact):
    before = exact(windows())
    faster = mixed(exact)
    after = faster(windows())
    assert after.dtype == torch.float32
    removed = float((before - windows()[:, 1:2]).std())
    assert 0 < float((after - before).abs().mean()) < 0.02 * removed
    assert torch.equal(exact(windows()), before)
    assert {parameter.dtype for parameter in exact.parameters()} == {torch.float32}


@torch.inference_mode()
def test_maps_of_full_resolution_stay_float32(exact):
    seen = {}

    def note(module: nn.Conv2d, _: object, output: Tensor) -> None:
        seen.setdefault(tuple(output.shape[-2:]), set()).add(output.dtype)

    faster = mixed(exact)
    for module in faster.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    faster(windows())
    assert seen[96, 128] == {torch.float32}
    assert seen[24, 32] == {torch.bfloat16}


def test_a_network_without_small_maps_has_no_mixed_precision():
    recipe = REDCNNRecipe(network="redcnn", channels=4)
    assert mixed(deployable(build(recipe, 0), recipe)) is None


def slow(hu: Tensor) -> Tensor:
    until = time.thread_time() + 0.02
    while time.thread_time() < until:
        pass
    return hu[:, 1:2]


def off(by: float, share: float = 1.0):
    """A model that is wrong by so many HU, in this share of the rows."""

    def model(hu: Tensor) -> Tensor:
        wrong = torch.zeros_like(hu[:, 1:2])
        wrong[:, :, : round(share * hu.shape[2])] = by
        return hu[:, 1:2] + wrong

    return model


def test_what_is_faster_and_within_bounds_is_chosen():
    choice = choose(slow, off(0.9 * MEAN_HU), windows(), BODY)
    assert choice.precision == "mixed"
    assert choice.mean == pytest.approx(0.9 * MEAN_HU, abs=1e-4)
    assert choice.seconds["float32"] > 0.02 > choice.seconds["mixed"]


@pytest.mark.parametrize(
    ("exact", "faster"),
    [
        (slow, off(1.1 * MEAN_HU)),
        # Two rows of 96: a mean within bounds, and one pixel of a thousand that is not.
        (slow, off(1.1 * EXTREME_HU, 0.02)),
        (off(0), slow),
    ],
    ids=["off on average", "off in a few pixels", "no faster"],
)
def test_what_is_not_stays_float32(exact, faster):
    assert choose(exact, faster, windows(), BODY).precision == "float32"


def test_the_error_counts_in_the_body_alone():
    half = BODY.clone()
    half[:, :48] = False
    assert choose(slow, off(9.0, 0.5), windows(), half).precision == "mixed"
    assert choose(slow, off(0.0), windows(), ~BODY).precision == "float32"
