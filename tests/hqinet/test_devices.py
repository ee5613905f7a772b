"""Which device, how fast, how much fits."""

import pytest
import torch

from hqinet import devices
from hqinet.devices import DeviceError, bf16_is_faster, matrix_rate, pick_device

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
    with pytest.raises(DeviceError, match=f"'{name}' was asked for, but torch finds none"):
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
