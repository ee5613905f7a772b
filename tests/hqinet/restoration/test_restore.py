"""Whole volumes: every slice restored from its own window, in HU, a few at a time."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hqinet.networks.hqinet import build
from hqinet.networks.recipe import HQINetRecipe
from hqinet.noise import noise_level
from hqinet.restoration.restore import InferenceError, Restorer, read_windows, restore
from hqinet.samples.slab import window_slices


class Stack:
    """A volume that notes how many slices are asked for at once."""

    def __init__(self, hu: np.ndarray) -> None:
        self.hu, self.asked = hu, []

    @property
    def shape(self) -> tuple[int, ...]:
        return self.hu.shape

    def __getitem__(self, index: slice) -> np.ndarray:
        self.asked.append(index.stop - index.start)
        return self.hu[index]


def volume(slices: int = 7, rows: int = 20, columns: int = 26) -> np.ndarray:
    hu = np.random.default_rng(0).integers(-1000, 1500, (slices, rows, columns))
    return hu.astype(np.int16)


def whole(parts: Iterator[tuple[int, np.ndarray]]) -> np.ndarray:
    return np.concatenate([restored for _, restored in parts])


def weighted(hu: Tensor) -> Tensor:
    """A model that tells the three slices apart."""
    return hu[:, :1] + 10 * hu[:, 1:2] + 100 * hu[:, 2:]


@given(slices=st.integers(1, 9), batch=st.integers(1, 12))
def test_every_slice_sees_its_own_neighbours(slices: int, batch: int) -> None:
    hu = volume(slices).astype(np.float32)
    parts = list(restore(weighted, volume(slices), batch=batch))
    assert [start for start, _ in parts] == list(range(0, slices, batch))
    for i, restored in enumerate(whole(iter(parts))):
        before, middle, after = window_slices(i, slices)
        np.testing.assert_allclose(restored, hu[before] + 10 * hu[middle] + 100 * hu[after])


@given(slices=st.integers(1, 9), bounds=st.tuples(st.integers(0, 8), st.integers(1, 9)))
def test_windows_are_the_three_slices(slices: int, bounds: tuple[int, int]) -> None:
    first, stop = min(bounds[0], slices - 1), min(max(bounds), slices)
    hu = volume(slices, 2, 3)
    windows = read_windows(hu, first, max(stop, first + 1))
    for window, i in zip(windows, range(first, max(stop, first + 1)), strict=True):
        np.testing.assert_array_equal(window, hu[list(window_slices(i, slices))])


def test_only_a_few_slices_are_held() -> None:
    stack = Stack(volume(30))
    for _, restored in restore(weighted, stack, batch=4):
        assert restored.dtype == np.float32
        assert len(restored) <= 4
    assert max(stack.asked) <= 6


def test_a_slice_at_a_time_gives_the_result_of_all_at_once() -> None:
    network = build(HQINetRecipe(width=0.125, output="noise_residual", init="he"), 0)
    nn.init.constant_(network.reconstruction.out.weight, 0.1)
    model = Restorer(network).eval()
    seen: list[int] = []

    def counting(hu: Tensor) -> Tensor:
        seen.append(len(hu))
        return model(hu)

    single = whole(restore(counting, volume(), batch=5))
    assert seen == [1] * 7
    with torch.inference_mode():
        together = model(torch.from_numpy(read_windows(volume(), 0, 7)).float())[:, 0].numpy()
    np.testing.assert_allclose(single, together, atol=0.05)
    assert np.abs(single - volume()).max() > 1


def test_restorer_measures_the_middle_slice_and_keeps_hu() -> None:
    class Spy(nn.Module):
        def forward(self, windows: Tensor, noise: Tensor) -> Tensor:
            self.seen = windows, noise
            return windows[:, 1:2]

    spy = Spy()
    hu = torch.from_numpy(volume(3)[None].astype(np.float32))
    restored = Restorer(spy)(hu)
    torch.testing.assert_close(restored, hu[:, 1:2], rtol=0, atol=1e-3)
    windows, noise = spy.seen
    torch.testing.assert_close(windows, (hu + 1024) / 4095)
    torch.testing.assert_close(noise, noise_level(hu[:, 1]) / 4095)


def test_nan_and_wrong_shapes_do_not_slip_through() -> None:
    with pytest.raises(InferenceError, match="slices from 0: the model returned NaN"):
        list(restore(lambda hu: hu[:, 1:2] * torch.nan, volume()))
    with pytest.raises(InferenceError, match=r"returned \(4, 3, 20, 26\) for \(4, 1, 20, 26\)"):
        list(restore(lambda hu: hu, volume()))


def test_on_a_cpu_each_core_restores_a_slice_by_itself():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen, met = set(), threading.Barrier(2, timeout=20)

    def alone(hu):
        seen.add((threading.get_ident(), torch.get_num_threads()))
        met.wait()
        return hu[:, 1:2]

    try:
        low = volume(4)
        restored = np.concatenate([part for _, part in restore(alone, low, batch=2)])
        assert np.array_equal(restored, low)
        assert len({thread for thread, _ in seen}) == 2
        assert {threads for _, threads in seen} == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
