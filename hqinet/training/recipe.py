"""What training does, as typed TOML: the recipes `paper`, `fast`, `demo`, or a file of one's own.

A recipe says everything that changes the weights, and nothing about where things live.
"""

import math
import tomllib
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveInt, ValidationError, model_validator

from hqinet.errors import HqinetError
from hqinet.intensity import HU_OFFSET, HU_RANGE, window_edges
from hqinet.networks.recipe import SMALLEST_OF_REDCNN, HQINetRecipe, ModelRecipe, REDCNNRecipe
from hqinet.recipe_section import RecipeSection
from hqinet.samples.recipe import SamplingRecipe

SSIM_SIZE = 11
"""Pixels a side of the windows of the loss's structural similarity."""
_RECIPES = resources.files("hqinet.training").joinpath("recipes")


class RecipeError(HqinetError):
    """A recipe cannot be used; the message is one line and says what to change."""


class LossRecipe(RecipeSection):
    """Weights of the parts of the loss."""

    l1: float = Field(0.0, ge=0)
    mse: float = Field(0.0, ge=0)
    ssim: float = Field(0.0, ge=0)
    """Of `1 - SSIM`."""
    per_noise: bool = False
    """Count errors in units of the low-dose slice's noise level."""
    window: tuple[float, float] | None = None
    """Display window (level, width) in HU that images are clipped to first; none in the paper."""

    @model_validator(mode="after")
    def _some_loss(self) -> "LossRecipe":
        if self.l1 + self.mse + self.ssim == 0:
            raise ValueError("give at least one of l1, mse and ssim a weight above 0")
        if self.window is not None and self.window[1] <= 1:
            raise ValueError("the window's width must be above 1 HU")
        return self

    def window_normalised(self) -> tuple[float, float]:
        """Return the lower and upper edge of `window` in normalised intensity."""
        if self.window is None:
            return 0.0, 1.0
        low, high = window_edges(*self.window)
        return (low + HU_OFFSET) / HU_RANGE, (high + HU_OFFSET) / HU_RANGE


class OptimiserRecipe(RecipeSection):
    """Adam (AdamW where `weight_decay` is above 0)."""

    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    clip: float | None = Field(None, gt=0)
    """Largest gradient norm; the paper does not clip."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of the exponential moving average of the weights that validation and the result use."""


class ScheduleRecipe(RecipeSection):
    """How long, and how the learning rate moves."""

    epochs: PositiveInt
    steps_per_epoch: PositiveInt | None = None
    """None: as many as it takes to draw as many samples as there are training slices."""
    decay: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    max_minutes: float | None = Field(None, gt=0)
    """Stop after this wall time, the decay following whichever of steps and time is further. Such
    a run is not reproducible bit for bit; one limited by steps is."""
    validation_slices: PositiveInt | None = None
    """Evenly spaced slices of each validation patient that an epoch is judged on; None: all."""


class Recipe(RecipeSection):
    """Everything that changes the weights, apart from the data."""

    name: str
    seed: int = Field(0, ge=0)
    precision: Literal["float32", "bf16"] = "float32"
    """`bf16`: autocast where the device multiplies bf16 matrices faster, float32 elsewhere."""
    model: Annotated[ModelRecipe, Field(discriminator="network")]
    loss: LossRecipe
    optimiser: OptimiserRecipe
    schedule: ScheduleRecipe
    sampling: SamplingRecipe

    def steps(self, slices: int) -> tuple[int, int]:
        """Return the steps of an epoch and of the whole schedule, for so many training slices."""
        epoch = self.schedule.steps_per_epoch or math.ceil(slices / self.sampling.batch)
        return epoch, self.schedule.epochs * epoch

    @model_validator(mode="after")
    def _patches_large_enough(self) -> "Recipe":
        smallest = max(
            SMALLEST_OF_REDCNN if isinstance(self.model, REDCNNRecipe) else 1,
            SSIM_SIZE if self.loss.ssim else 1,
        )
        if self.sampling.patch is not None and self.sampling.patch < smallest:
            raise ValueError(
                f"sampling.patch must be {smallest} or more with this network and loss, "
                f"not {self.sampling.patch}"
            )
        return self


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the project."""
    files = _RECIPES.iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load_recipe(name_or_path: str, *overrides: str) -> Recipe:
    """Read a recipe by name (`fast`) or path (`mine.toml`), with TOML overrides on top.

    An override is one TOML line with a dotted key: `model.width = 0.25`. Raises RecipeError for
    an unknown recipe, text that is not TOML, an unknown key (naming the nearest known one) or a
    value that does not fit.
    """
    text = _read(name_or_path)
    try:
        content = tomllib.loads(text)
        for line in overrides:
            content = _merged(content, tomllib.loads(line))
    except tomllib.TOMLDecodeError as error:
        message = f"recipe {name_or_path!r} with {list(overrides)}: not TOML: {error}"
        raise RecipeError(message) from error
    content.setdefault("name", Path(name_or_path).stem)
    model = content.get("model")
    if isinstance(model, dict):
        model.setdefault("network", "hqinet")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_explain(problem) for problem in error.errors())
        raise RecipeError(f"recipe {name_or_path!r}: {problems}") from error


def _read(name_or_path: str) -> str:
    known = recipe_names()
    if name_or_path in known:
        return _RECIPES.joinpath(f"{name_or_path}.toml").read_text()
    try:
        return Path(name_or_path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {name_or_path!r}: not UTF-8: {error}") from error
    except OSError as error:
        if len(Path(name_or_path).parts) > 1 or name_or_path.endswith(".toml"):
            raise RecipeError(f"recipe file {name_or_path}: {error.strerror}") from error
        near = get_close_matches(name_or_path, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}, or a file"
        raise RecipeError(f"there is no recipe {name_or_path!r}: {hint}") from error


def _merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `top`, tables merged key by key."""
    merged = dict(base)
    for key, value in top.items():
        known = merged.get(key)
        both = isinstance(known, dict) and isinstance(value, dict)
        merged[key] = _merged(known, value) if both else value
    return merged


def _explain(problem: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails is a TypedDict of Any
    networks = {"hqinet": HQINetRecipe, "redcnn": REDCNNRecipe}
    location = [str(part) for part in problem["loc"]]
    key = ".".join(part for part in location if part not in networks)
    if problem["type"] == "extra_forbidden":
        section: Any = Recipe
        for part in location[:-1]:
            section = networks.get(part) or section.model_fields[part].annotation
        fields = section.model_fields if hasattr(section, "model_fields") else {}
        near = (
            get_close_matches(location[-1], fields, n=1)
            or [name for name in _sections_with(location[-1]) if name != key]
            or get_close_matches(location[-1], fields, n=1, cutoff=0.0)
        )
        return f"unknown key {key!r}: did you mean {near[0]!r}?" if near else f"unknown key {key!r}"
    if not key:
        return problem["msg"]
    return f"{key}: {problem['msg']} (got {problem['input']!r})"


def _sections_with(key: str) -> list[str]:
    """The dotted names of a key that was given outside its section."""
    return [
        f"{name}.{key}"
        for name, section in Recipe.model_fields.items()
        for kind in (section.annotation, *get_args(section.annotation))
        if key in getattr(kind, "model_fields", {})
    ]
