"""Batches: as they are stored, and as a network is trained on them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hqinet.intensity import HU_RANGE, normalise
from hqinet.noise import FLOOR_HU, sharpened, sharpening_gain
from hqinet.samples.lesions import render
from hqinet.samples.order import MARGIN, Draw
from hqinet.samples.recipe import SamplingRecipe
from hqinet.samples.slab import NEIGHBOURS


class Batch(NamedTuple):
    """Samples as they are stored, before `prepare`."""

    low: Tensor
    """(n, 3, h, w) int16 HU"""
    full: Tensor
    """(n, 3, h, w) int16 HU"""
    partner: Tensor
    """(n, 3, h, w) int16 HU: `low - full` of each window's partner"""
    noise: Tensor
    """(n, 2) float32 HU: noise level of the whole low-dose and full-dose middle slice"""
    draws: Sequence[Draw]


class Sample(NamedTuple):
    """Samples to train on: float32, normalised, on the device."""

    windows: Tensor
    """(n, 3, h, w) low dose"""
    full: Tensor
    """(n, 1, h, w) full dose of the middle slice"""
    noise: Tensor
    """(n,) noise level of the low-dose middle slice"""
    dose: Tensor
    """(n,) fraction of the full dose"""


def prepare(batch: Batch, recipe: SamplingRecipe, device: torch.device) -> Sample:
    """Move a batch to the device; normalise, make its dose, neighbours and texture, and mirror.

    The added noise of a window and that of a place nearby, each times a cosine and a sine, sum to
    noise of the same covariance that has not been seen before; its scale makes the dose. Its noise
    level follows from the measured ones, for the added noise is independent of the full dose's.
    Zoom and kernel change anatomy and noise alike, and so keep the relation between both doses.
    """
    draws = batch.draws
    low, full, partner, noise = (x.to(device, non_blocking=True) for x in batch[:4])
    own, other = (
        torch.tensor([d.mixing for d in draws], device=device).view(-1, 2, 1, 1, 1).unbind(1)
    )
    added = own * (low.float() - full) + other * partner.float()
    full = full.float()
    if recipe.lesions:
        crop = (int(full.shape[2]), int(full.shape[3]))
        full = full + render([d.lesions for d in draws], crop, device)
    low = normalise(full + added)
    chosen = torch.tensor([NEIGHBOURS[d.neighbours] for d in draws], device=device)
    low = low.gather(1, chosen.view(-1, 3, 1, 1).expand_as(low))
    both = torch.cat([low, normalise(full[:, 1:2])], dim=1)
    low_variance, full_variance = noise.square().unbind(1)
    scale = (own.square() + other.square()).flatten()
    level = full_variance + scale * (low_variance - full_variance).clamp_min(0)
    level = level.sqrt()
    if recipe.zoom is not None or recipe.kernels is not None:
        both, gain = _textured(both, draws, recipe)
        level = level * gain
    level = level.clamp_min(FLOOR_HU) / HU_RANGE
    flips = torch.tensor([(d.flip_rows, d.flip_columns) for d in draws], device=device)
    for axis, flip in ((2, flips[:, 0]), (3, flips[:, 1])):
        both = torch.where(flip.view(-1, 1, 1, 1), both.flip(axis), both)
    dose = torch.tensor([d.dose for d in draws], device=device)
    return Sample(both[:, :3], both[:, 3:], level, dose)


def _textured(both: Tensor, draws: Sequence[Draw], recipe: SamplingRecipe) -> tuple[Tensor, Tensor]:
    """Resample and sharpen crops (n, c, side, side) to patches; return them and the level's gain.

    The last channel is the full dose, the one of index 1 the low dose of the same slice.
    """
    before = both[:, 1] - both[:, -1]
    side = int(recipe.patch or 0) + (2 * MARGIN if recipe.kernels else 0)
    if recipe.zoom is not None:
        zoom = torch.tensor([d.zoom for d in draws], device=both.device)
        theta = torch.zeros(len(draws), 2, 3, device=both.device)
        theta[:, 0, 0] = theta[:, 1, 1] = zoom * side / both.shape[-1]
        grid = F.affine_grid(theta, [len(draws), 1, side, side], align_corners=False)
        both = F.grid_sample(both, grid, "bicubic", "reflection", align_corners=False)
    if recipe.kernels is not None:
        kernel = torch.tensor([d.kernel for d in draws], device=both.device)
        both = sharpened(both, kernel)
    return both, sharpening_gain(before, both[:, 1] - both[:, -1])
