"""The part of a recipe that says what a batch is made of."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from hqinet.recipe_section import RecipeSection


class SamplingRecipe(RecipeSection):
    """What a batch is made of."""

    batch: PositiveInt
    micro_batch: PositiveInt | None = None
    """Samples held in memory at once, gradients accumulating to `batch`; None: as many as fit."""
    patch: PositiveInt | None = None
    """Side of the square crops in pixels; None: whole slices."""
    patches_per_slice: PositiveInt = 1
    """Samples cut from the same three slices, some batches apart, to read and decode them once."""
    balance: Literal["slices", "patients"] = "slices"
    """What is equally likely to be drawn."""
    flips: bool = False
    """Mirror rows and columns at random."""
    dose: tuple[float, float] | None = None
    """Range of the dose fraction drawn for each sample; None: that of the pair."""
    mix_noise: bool = False
    """Mix the added noise of another place of the patient in, so that no sample's noise repeats."""
    drop_neighbours: float = Field(0.0, ge=0, le=1)
    """Share of the samples that lack one neighbour or both, as edge and isolated slices do."""
    zoom: tuple[float, float] | None = None
    """Range of the pixel size drawn for each sample, over that of the slice."""
    kernels: tuple[float, float] | None = None
    """Range of the factor on the finest detail of each sample, anatomy and noise alike: other
    reconstruction kernels."""
    lesions: NonNegativeInt = 0
    """Faint round lesions put into each sample, low and full dose alike, which are to be kept."""

    @model_validator(mode="after")
    def _whole_batches(self) -> "SamplingRecipe":
        if self.micro_batch is not None and self.batch % self.micro_batch:
            raise ValueError("batch must be a multiple of micro_batch")
        if (self.zoom or self.kernels) and self.patch is None:
            raise ValueError("zoom and kernels need a patch")
        for name, most in (("dose", 0.99), ("zoom", 4.0), ("kernels", 10.0)):
            bounds = getattr(self, name)
            if bounds is not None and not 0 < bounds[0] <= bounds[1] <= most:
                raise ValueError(
                    f"{name} must be a range (low, high) with 0 < low <= high <= {most:g}"
                )
        return self
