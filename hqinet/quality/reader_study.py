"""What an observer makes of lesions in low, restored and full dose, over all patients.

Two channelised Hotelling observers (`hqinet.quality.detectability`) are asked whether a lesion is
there, which of two sizes it has, and which of two contrasts: one with Laguerre-Gauss channels and
no noise of its own, which judges the image; one with the channels of human vision and
INTERNAL_NOISE, which is nearer to a reader. Places are the sample: they are drawn anew for the
intervals, the same ones for every image.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from hqinet.quality.detectability import (
    INTERVAL,
    LEAST,
    RESAMPLED,
    detectability_index,
    drawn_anew,
)
from hqinet.quality.tasks import (
    DIFFERENCE_OF_GAUSSIANS,
    IMAGES,
    LAGUERRE_GAUSS,
    LESIONS,
    Number,
    Tasks,
)

Array = NDArray[np.float64]
QUESTIONS: Mapping[str, tuple[str, str]] = {
    "detection": ("lesion", "absent"),
    "size": ("lesion", "smaller"),
    "contrast": ("lesion", "fainter"),
}
"""Which two kinds of `hqinet.quality.tasks.LESIONS` the observer tells apart."""
INTERNAL_NOISE = 1.0
"""Of the observer with human channels: SD over that of what each channel sees."""


class Estimate(BaseModel):
    """A number and its 95 % bootstrap interval over places; None for what is not finite."""

    model_config = ConfigDict(frozen=True)

    value: Number
    low: Number
    high: Number


class Answer(BaseModel):
    """How well the observer answers one question."""

    model_config = ConfigDict(frozen=True)

    index: dict[str, Estimate] = Field(description="d' in the low, restored and full dose.")
    ratio: Estimate = Field(description="d' in the restored image over that in the low dose.")


class ReaderStudy(BaseModel):
    """All questions, and at how many places of how many patients they were asked."""

    model_config = ConfigDict(frozen=True)

    places: int = 0
    patients: int = 0
    answers: dict[str, Answer] = Field({}, description="By question; empty with too few places.")
    human: dict[str, Answer] = Field({}, description="Those of the observer with human channels.")


def ask_observer(tasks: Iterable[Tasks]) -> ReaderStudy:
    """Ask every question over the places of all patients."""
    answers = [one.answers for one in tasks if one.answers["full"].shape[1]]
    if not answers:
        return ReaderStudy()
    seen = {name: np.concatenate([one[name] for one in answers], axis=1) for name in IMAGES}
    return ReaderStudy(
        places=seen["full"].shape[1],
        patients=len(answers),
        answers=_ask_all(seen, LAGUERRE_GAUSS, 0.0),
        human=_ask_all(seen, DIFFERENCE_OF_GAUSSIANS, INTERNAL_NOISE),
    )


def _ask_all(
    seen: Mapping[str, Array], channels: slice, internal_noise: float
) -> dict[str, Answer]:
    """The answers of an observer with these channels; none where it has too few places to learn."""
    own = {name: kinds[..., channels] for name, kinds in seen.items()}
    _, places, count = own["full"].shape
    if places < 2 * LEAST * count:
        return {}
    return {name: _ask(own, kinds, internal_noise) for name, kinds in QUESTIONS.items()}


def _ask(seen: Mapping[str, Array], asked: tuple[str, str], internal_noise: float) -> Answer:
    numbers = [list(LESIONS).index(kind) for kind in asked]
    pairs = {name: [kinds[number] for number in numbers] for name, kinds in seen.items()}
    random = np.random.default_rng(0)
    drawn = [drawn_anew(len(pairs["full"][0]), random) for _ in range(RESAMPLED)]
    value = {name: detectability_index(*kinds, internal_noise) for name, kinds in pairs.items()}
    again = {
        name: np.array(
            [
                detectability_index(*(kind[places] for kind in kinds), internal_noise)
                for places in drawn
            ]
        )
        for name, kinds in pairs.items()
    }
    ratio = _estimate(value["restored"] / value["low"], again["restored"] / again["low"])
    return Answer(
        index={name: _estimate(value[name], again[name]) for name in IMAGES},
        ratio=ratio,
    )


def _estimate(value: float, again: Array) -> Estimate:
    low, high = np.percentile(again, INTERVAL)
    return Estimate(value=value, low=low, high=high)
