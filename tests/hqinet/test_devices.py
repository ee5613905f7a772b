"""Which device, how fast, how much fits."""

import pytest
import torch
from torch import nn

from hqinet import devices
from hqinet.devices import activation_bytes, bf16_is_faster, fitting_batch, matrix_rate, pick_device
from hqinet.networks.hqinet import build
from hqinet.training.recipe import HQINetRecipe

CPU = torch.device("cpu")


def test_auto_takes_the_fastest_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device("cuda") == torch.device("cuda", 3)
    assert pick_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"'{name}' was asked for, but torch finds none"):
        pick_device(name)


def test_bf16_is_taken_where_it_is_measured_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {torch.float32: 100.0, torch.bfloat16: 119.0}
    monkeypatch.setattr(devices, "matrix_rate", lambda _device, dtype: rates[dtype])
    assert not bf16_is_faster(CPU)
    rates[torch.bfloat16] = 121.0
    assert bf16_is_faster(CPU)
    assert not bf16_is_faster(torch.device("mps"))


def test_matrix_rate_is_in_flop_per_second() -> None:
    assert 1e8 < matrix_rate(CPU, torch.float32, side=256) < 1e14


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
        monkeypatch.setattr(devices, "free_memory", lambda room=room: weights + int(room * each))
        assert fitting_batch(network, (32, 32), 88, CPU) == expected
