"""How many samples of a batch fit the memory at once."""

import pytest
import torch
from torch import nn

from hqinet.networks.hqinet import build
from hqinet.networks.recipe import HQINetRecipe
from hqinet.training import micro_batch
from hqinet.training.micro_batch import activation_bytes, fitting_batch

CPU = torch.device("cpu")


def test_activations_are_counted_once_each() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, windows: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
            x = (windows * self.weight).exp()  # keeps windows and its own result
            return x * x + noise.view(-1, 1, 1, 1)  # keeps x twice: one storage

    assert activation_bytes(Two(), (10, 20), CPU) == 2 * 3 * 10 * 20 * 4


def test_running_statistics_are_not_touched_by_the_measurement() -> None:
    network = build(HQINetRecipe(width=0.05), 0).train()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    activation_bytes(network, (32, 32), CPU)
    assert network.training
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


def test_largest_divisor_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(HQINetRecipe(width=0.05), 0)
    each = activation_bytes(network, (32, 32), CPU) * 1.5 / 0.7
    weights = 3 * 4 * sum(p.numel() for p in network.parameters())
    for room, expected in ((100.0, 88), (50.0, 44), (43.0, 22), (1.5, 1), (0.1, 1)):
        monkeypatch.setattr(
            micro_batch, "free_memory", lambda room=room: weights + int(room * each)
        )
        assert fitting_batch(network, (32, 32), 88, CPU) == expected
