"""RED-CNN against a plain version of its figure."""

import pytest
import torch
from torch.nn import functional as F

from hqinet.networks.hqinet import build
from hqinet.networks.recipe import REDCNNRecipe
from hqinet.networks.redcnn import REDCNN
from hqinet.training.recipe import load_recipe


def test_layers_and_shortcuts_are_those_of_the_figure() -> None:
    network = build(REDCNNRecipe(network="redcnn", channels=6), 0)
    for parameter in network.parameters():
        parameter.data += 0.05
    windows = torch.rand(2, 3, 30, 26)
    encoder, decoder = network.encoder, network.decoder
    x = windows[:, 1:2]
    first = F.relu(encoder[0](x))
    second = F.relu(encoder[1](first))
    fourth = F.relu(encoder[3](F.relu(encoder[2](second))))
    y = F.relu(decoder[0](F.relu(encoder[4](fourth))) + fourth)
    y = F.relu(decoder[2](F.relu(decoder[1](y))) + second)
    y = F.relu(decoder[4](F.relu(decoder[3](y))) + x)
    torch.testing.assert_close(network(windows, torch.ones(2)), y)


def test_parameter_count_is_the_published_one() -> None:
    # 96 filters of 5x5: 2 x (25 x 96) + 8 x (25 x 96 x 96), and 9 x 96 + 1 biases.
    assert sum(p.numel() for p in REDCNN().parameters()) == 4_800 + 1_843_200 + 865


def test_weights_are_drawn_with_sd_001() -> None:
    weight = build(load_recipe("redcnn", "model.channels = 96").model, 0).encoder[2].weight
    assert weight.std().item() == pytest.approx(0.01, rel=0.02)


def test_slices_smaller_than_its_kernels_are_refused() -> None:
    network = REDCNN(2)
    assert network(torch.zeros(1, 3, 21, 21), torch.ones(1)).shape == (1, 1, 21, 21)
    with pytest.raises(ValueError, match=r"21x21 or more, got \(20, 40\)"):
        network(torch.zeros(1, 3, 20, 40), torch.ones(1))
