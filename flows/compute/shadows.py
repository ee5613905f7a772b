"""What a challenger did to live series in the shadow: read from the records of what it made."""

from pathlib import Path

import numpy as np
from pydantic import BaseModel, computed_field

from flows.settings import Settings
from storage.dicom.archive import SeriesRecord


class ShadowEvidence(BaseModel):
    """What a version did to live series, without any reference; it decides nothing by itself.

    Attributes:
        outside: how many series lay outside of what the version was trained on.
        removed: mean RMS of what was removed, over the noise level of the input.
        grain: mean frequency of what was removed, over that of the input's noise.
        bias: mean of what was removed in the smooth parts of a tissue, HU.
    """

    restored: int
    quarantined: int
    outside: int
    removed: float | None
    grain: float | None
    bias: dict[str, float]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def said(self) -> str:
        """All of it in a line."""
        words = [f"{self.restored} series restored, {self.quarantined} quarantined"]
        words += [f"{self.outside} outside of the training data"]
        if self.removed is not None:
            words += [f"{self.removed:.0%} of the noise removed"]
        if self.grain is not None:
            words += [f"grain {self.grain:.2f} times that of the noise"]
        words += [f"{hu:+.1f} HU from {tissue}" for tissue, hu in self.bias.items()]
        return ", ".join(words)


def folder() -> Path:
    """Where what is made in the shadow lies."""
    return Settings().home.absolute() / "shadow"


def evidence_of(version: int) -> ShadowEvidence | None:
    """What a version did to live series; None where it never restored any in the shadow."""
    read = [SeriesRecord.read(file) for file in sorted(folder().glob("*.json"))]
    records = [one for one in read if one is not None and one.model == str(version)]
    done = [one for one in records if one.instances or one.quarantined]
    if not done:
        return None
    biases = [one.measured.get("bias", {}) for one in done]
    means = {name: _mean([one.get(name) for one in biases]) for one in biases for name in one}
    return ShadowEvidence(
        restored=sum(not one.quarantined for one in done),
        quarantined=sum(bool(one.quarantined) for one in done),
        outside=sum(bool(one.warnings) for one in done),
        removed=_mean([one.measured.get("removed") for one in done]),
        grain=_mean([one.measured.get("grain") for one in done]),
        bias={name: mean for name, mean in sorted(means.items()) if mean is not None},
    )


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None
