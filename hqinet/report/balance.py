"""What a restored image gains a reader, and what it costs: sentences before any table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hqinet.quality.reader_study import QUESTIONS, ReaderStudy
from hqinet.quality.tasks import TaskFigures

TEXTURE = 0.1
"""Of the mean frequency of full dose's noise: a change that a reader begins to see."""
SHARPNESS = 0.9
"""Of the slope of full dose's edges, below which they look blurred."""
_TASKS = {
    "detection": "seeing whether a faint lesion is there (8 mm, -40 HU)",
    "size": "telling a lesion of 8 mm from one of 6 mm",
    "contrast": "telling a lesion of -40 HU from one of -30 HU",
}


@dataclass(frozen=True)
class Balance:
    """Sentences for a physicist."""

    gained: list[str]
    lost: list[str]
    unchanged: list[str]


def balance(tasks: Mapping[str, TaskFigures], study: ReaderStudy) -> Balance:
    """Sort what was measured into gains, losses, and what shows no difference."""
    gained, lost, unchanged = [], [], []
    share = _mean([one.share for one in tasks.values()])
    if share is not None:
        (gained if share > 0 else lost).append(
            f"Noise: {share:.0%} of what any restorer could gain in PSNR against this full dose."
        )
    texture = _mean([one.texture for one in tasks.values()])
    if texture is not None:
        sentence = (
            f"Texture: the noise left has {texture:.0%} of the mean frequency of full dose's"
            + ("; it looks blotchy." if texture < 1 - TEXTURE else ".")
        )
        (unchanged if abs(texture - 1) <= TEXTURE else lost).append(sentence)
    for kind, slope in _slopes(tasks):
        sentence = f"Edges of {kind} contrast: {slope:.0%} of full dose's slope."
        (unchanged if slope >= SHARPNESS else lost).append(sentence)
    invented = _mean([one.invented for one in tasks.values()])
    if invented is not None:
        sentence = (
            f"Structure that full dose has not: {invented:.0%} of what noise feigns in low dose."
        )
        (gained if invented < 1 else lost).append(sentence)
    for question in QUESTIONS:
        if question in study.answers:
            side, sentence = _judged(question, study)
            {"gained": gained, "lost": lost, "unchanged": unchanged}[side].append(sentence)
    return Balance(gained, lost, unchanged)


def _slopes(tasks: Mapping[str, TaskFigures]) -> Iterator[tuple[str, float]]:
    kinds = next(iter(tasks.values())).sharpness if tasks else ()
    for kind in kinds:
        slope = _mean([one.sharpness[kind] for one in tasks.values()])
        if slope is not None:
            yield kind, slope


def _judged(question: str, study: ReaderStudy) -> tuple[str, str]:
    ratio = study.answers[question].ratio
    task = f"{_TASKS[question][0].upper()}{_TASKS[question][1:]}"
    if ratio.value is None or ratio.low is None or ratio.high is None:
        return "unchanged", f"{task}: cannot be measured."
    words = f"{ratio.value:.2f} times as well as in low dose ({ratio.low:.2f} to {ratio.high:.2f})"
    human = study.human.get(question)
    if human is not None and human.ratio.value is not None:
        words += f", {human.ratio.value:.2f} times by an observer with human channels"
    if ratio.low > 1:
        return "gained", f"{task}: {words}."
    if ratio.high < 1:
        return "lost", f"{task}: {words}."
    return "unchanged", f"{task}: {words}, which shows no difference."


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None
