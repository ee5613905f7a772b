"""The part of a recipe that says which network there is, and how it is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field, PositiveInt

from hqinet.recipe_section import RecipeSection

if TYPE_CHECKING:
    # Recipes are read by commands that need not wait for torch.
    from torch import Tensor

SMALLEST_OF_REDCNN = 21
"""Pixels a side that its five 5x5 convolutions without padding leave one of."""
_CHANNEL_STEP = 8
_Dose = TypeVar("_Dose", float, "Tensor")


class _NetworkRecipe(RecipeSection):
    """What any network says of its output."""

    estimates: Literal["full", "clean"] = "full"
    """`full`: the full-dose slice. `clean`: the slice without noise; since the full dose has a
    share `dose` of the low dose's variance, it is the low dose less `1 - dose` of what is taken
    off, and one network serves every dose."""

    def removed(self, dose: _Dose) -> _Dose | None:
        """Return the share of what the network takes off that leads from `dose` to full dose.

        None for a network that estimates the full dose.
        """
        return 1 - dose if self.estimates == "clean" else None


class HQINetRecipe(_NetworkRecipe):
    """The network of Lu et al. 2021 and the readings the paper leaves open."""

    network: Literal["hqinet"] = "hqinet"
    width: float = Field(1.0, gt=0, le=4)
    """Factor on every channel count; 1 is the paper, less is for small machines."""
    stem_strides: tuple[Literal[1, 2], Literal[2]] = (1, 2)
    """Of the two 3x3 convolutions that replace ResNet's stem; (2, 2) keeps ResNet's strides."""
    scse: Literal["stage", "bottleneck"] = "stage"
    """One scSE closing each of the four stages, or one in each of the 16 bottlenecks."""
    norm: Literal["batch", "group", "none"] = "batch"
    output: Literal["direct", "residual", "noise_residual"] = "direct"
    """`direct`: the slice itself (paper); `residual`: added to the middle input slice;
    `noise_residual`: times the slice's noise level, then added, the network also seeing the
    detail of its input in units of that noise."""
    init: Literal["paper", "he"] = "paper"

    def channels(self, width: int) -> int:
        """Return the paper's channel count scaled, as a multiple of eight and at least eight."""
        return max(_CHANNEL_STEP, round(width * self.width / _CHANNEL_STEP) * _CHANNEL_STEP)


class REDCNNRecipe(_NetworkRecipe):
    """The reference network of Chen et al. 2017."""

    network: Literal["redcnn"]
    channels: PositiveInt = 96


ModelRecipe = HQINetRecipe | REDCNNRecipe
