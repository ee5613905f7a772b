"""What training does, as typed TOML: the recipes `paper`, `fast`, `demo`, or a file of one's own.

A recipe says everything that changes the weights, and nothing about where things live.
"""

import math
import tomllib
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from hqinet.errors import HqinetError
from hqinet.intensity import HU_OFFSET, HU_RANGE

if TYPE_CHECKING:
    from torch import Tensor

SSIM_SIZE = 11
"""Pixels a side of the windows of the loss's structural similarity."""
SMALLEST_OF_REDCNN = 21
"""Pixels a side that its five 5x5 convolutions without padding leave one of."""
_CHANNEL_STEP = 8
_RECIPES = resources.files("hqinet.training").joinpath("recipes")
_Dose = TypeVar("_Dose", float, "Tensor")


class RecipeError(HqinetError):
    """A recipe cannot be used; the message is one line and says what to change."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _NetworkRecipe(_Section):
    """What any network says of its output."""

    estimates: Literal["full", "clean"] = "full"
    """`full`: the full-dose slice. `clean`: the slice without noise; since the full dose has a
    share `dose` of the low dose's variance, it is the low dose less `1 - dose` of what is taken
    off, and one network serves every dose."""

    def removed(self, dose: "_Dose") -> "_Dose | None":
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


class LossRecipe(_Section):
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
        if self.window is not None and self.window[1] <= 0:
            raise ValueError("the window's width must be above 0 HU")
        return self

    def window_normalised(self) -> tuple[float, float]:
        """Return the lower and upper edge of `window` in normalised intensity."""
        level, width = self.window or (HU_RANGE / 2 - HU_OFFSET, HU_RANGE)
        return (
            (level - width / 2 + HU_OFFSET) / HU_RANGE,
            (level + width / 2 + HU_OFFSET) / HU_RANGE,
        )


class OptimiserRecipe(_Section):
    """Adam (AdamW where `weight_decay` is above 0)."""

    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    clip: float | None = Field(None, gt=0)
    """Largest gradient norm; the paper does not clip."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of the exponential moving average of the weights that validation and the result use."""


class ScheduleRecipe(_Section):
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


class SamplingRecipe(_Section):
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


class Recipe(_Section):
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
