"""Slices that do not fit into memory: fewer at once, then halves that join without a seam."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hqinet.networks.hqinet import build
from hqinet.networks.recipe import HQINetRecipe
from hqinet.restoration.restore import Restorer
from hqinet.restoration.tiles import GRID, OVERLAP, blended, within_memory

GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


class Limited:
    """A model that takes so many pixels at once."""

    def __init__(self, model, pixels: int, error: Exception | None = None) -> None:
        self.model, self.pixels, self.error, self.shapes = model, pixels, error or GPU, []

    def __call__(self, windows: Tensor) -> Tensor:
        if windows.shape[0] * windows.shape[2] * windows.shape[3] > self.pixels:
            raise self.error
        self.shapes.append(tuple(windows.shape))
        return self.model(windows)


def smoothed(windows: Tensor) -> Tensor:
    """What a pixel becomes depends on four around it, far less than the overlap."""
    return F.avg_pool2d(F.pad(windows[:, 1:2], (4, 4, 4, 4), mode="replicate"), 9, stride=1)


def noise(*shape: int) -> Tensor:
    return 40 + 20 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_what_fits_is_restored_at_once():
    limited = Limited(smoothed, 10**9)
    windows = noise(4, 3, 64, 64)
    assert torch.equal(within_memory(limited, windows), smoothed(windows))
    assert limited.shapes == [(4, 3, 64, 64)]


@pytest.mark.parametrize("error", [GPU, CPU])
def test_fewer_slices_at_once_come_before_any_cut(error):
    limited = Limited(smoothed, 2 * 64 * 64, error)
    windows = noise(5, 3, 64, 64)
    assert torch.equal(within_memory(limited, windows), smoothed(windows))
    assert {shape[2:] for shape in limited.shapes} == {(64, 64)}


@pytest.mark.parametrize("shape", [(1, 3, 400, 300), (2, 3, 277, 390)])
def test_halves_of_a_local_model_join_to_the_whole(shape):
    limited = Limited(smoothed, 300 * 200)
    windows = noise(*shape)
    assert (within_memory(limited, windows) - smoothed(windows)).abs().max() < 1e-4
    assert len(limited.shapes) > 2 * shape[0]


def test_a_seam_is_blended_evenly():
    before, after = torch.zeros(1, 1, 8, 192 + OVERLAP), torch.ones(1, 1, 8, 192 + OVERLAP)
    row = blended(before, after, 192, 3)[0, 0, 0]
    assert len(row) == 384
    assert (row.diff() >= 0).all()
    assert row.diff().max() <= 1.01 / OVERLAP
    assert row[192 - OVERLAP // 2 - 1] == 0
    assert row[192 + OVERLAP // 2] == 1


def test_halves_of_hqinet_are_near_the_whole():
    recipe = HQINetRecipe(width=0.125, norm="none", output="noise_residual", init="he")
    model = Restorer(build(recipe, 0)).eval()
    windows = noise(1, 3, 304, 288)
    with torch.inference_mode():
        whole = model(windows)
        limited = Limited(model, 304 * 256)
        halves = within_memory(limited, windows)
    assert {cut % GRID for shape in limited.shapes for cut in shape[2:]} == {0}
    # It pools over the whole image: near, not equal. A seam or a shift would be as large.
    assert (halves - whole).abs().mean() < 0.05 * (whole - windows[:, 1:2]).std()


def test_what_does_not_fit_even_so_says_so():
    with pytest.raises(torch.OutOfMemoryError, match="200 x 208 pixels do not fit"):
        within_memory(Limited(smoothed, 10), noise(1, 3, 200, 300))
