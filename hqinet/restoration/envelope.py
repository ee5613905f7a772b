"""What a model was trained to know, and whether a series lies within it."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from hqinet.noise import noise_level
from hqinet.samples.pairs import HuVolume

SCHEMA = 2
JUDGED_SLICES = 8
"""Evenly spaced slices that a series' noise is measured on."""
_LEEWAY = 1.25
"""Factor by which a length or a noise level may lie outside what was trained on."""
_VOLTAGE_LEEWAY = 1.02
"""Of the tube voltage, which scanners set to the kilovolt: another one is another contrast."""
_NO_KNOWLEDGE = {"other", "unknown"}
_APART = 0.25
"""Most of its noise's variance that a series may have at other frequencies than whatever series is
nearest among those trained on."""
Range = tuple[float, float]
Spectrum = tuple[float, ...]


class SeriesFacts(BaseModel):
    """What is known of one low-dose series; lengths in mm, noise in HU."""

    model_config = ConfigDict(frozen=True)

    vendor: str
    kernel: str
    anatomy: str
    pixel: float
    increment: float
    matrix: int = Field(description="The larger of rows and columns.")
    noise: float = Field(description="Median noise level (`hqinet.noise.noise_level`).")
    frequency: float | None = Field(
        None, description="Mean frequency of the noise, 1/mm; None: cannot be measured."
    )
    spectrum: Spectrum | None = Field(
        None, description="Share of its variance in each of BANDS; None: cannot be measured."
    )
    thickness: float | None = Field(None, description="Of a slice, mm; None: not known.")
    highest: float | None = Field(
        None, description="HU that one pixel in a thousand of the body exceeds; None: not measured."
    )
    kvp: float | None = Field(None, description="Tube voltage, kV; None: not known.")
    dose: float | None = Field(
        None, description="Dose over full dose: implied by a pair's noise, else stated."
    )

    @field_validator("frequency", "highest")
    @classmethod
    def _known(cls, value: float | None) -> float | None:
        return None if value is None or math.isnan(value) else value


class Envelope(BaseModel):
    """The training data of a model: words that occurred, ranges that were covered.

    Words `other` and `unknown` are no knowledge, and never inside. A range that is None is not
    judged: no training patient is known to have such a value, or it was not kept yet.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    schema_: int = Field(SCHEMA, alias="schema")
    patients: int
    vendors: tuple[str, ...]
    kernels: tuple[str, ...]
    anatomies: tuple[str, ...]
    pixel: Range
    increment: Range
    matrix: Range
    noise: Range
    frequency: Range | None = None
    spectra: tuple[Spectrum, ...] | None = None
    thickness: Range | None = None
    highest: Range | None = None
    kvp: Range | None = None
    dose: Range | None = None

    @classmethod
    def of(cls, series: Sequence[SeriesFacts], drawn: Range | None = None) -> "Envelope":
        """The envelope of the series that a model was trained on; at least one.

        drawn: range of the doses that training made of them.
        """

        def words(name: str) -> tuple[str, ...]:
            return tuple(sorted({getattr(one, name) for one in series} - _NO_KNOWLEDGE))

        def span(name: str, beside: Range | None = None) -> Range | None:
            values = [float(value) for one in series if (value := getattr(one, name)) is not None]
            values += beside or ()
            return (min(values), max(values)) if values else None

        return cls(
            patients=len(series),
            vendors=words("vendor"),
            kernels=words("kernel"),
            anatomies=words("anatomy"),
            pixel=span("pixel"),
            increment=span("increment"),
            matrix=span("matrix"),
            noise=span("noise"),
            frequency=span("frequency"),
            spectra=tuple(one.spectrum for one in series if one.spectrum is not None) or None,
            thickness=span("thickness"),
            highest=span("highest"),
            kvp=span("kvp"),
            dose=span("dose", drawn),
        )

    def warnings(self, facts: SeriesFacts) -> list[str]:
        """Why a series lies outside, one line a reason; empty inside."""
        found = [
            f"{what} {value!r} is not among those trained on ({', '.join(known)})"
            for what, value, known in (
                ("vendor", facts.vendor, self.vendors),
                ("kernel", facts.kernel, self.kernels),
                ("anatomy", facts.anatomy, self.anatomies),
            )
            if value not in known
        ]
        for what, value, known, unit in self._ranges(facts):
            if value is None or known is None:
                continue
            low, high = known
            leeway = _VOLTAGE_LEEWAY if unit == "kV" else _LEEWAY
            if not low / leeway <= value <= high * leeway:
                found.append(
                    f"{what} {value:.3g} {unit} is outside {low:.3g} to {high:.3g} {unit}, which "
                    "was trained on"
                )
        apart = self._spectrum_apart(facts)
        if apart is not None and apart > _APART:
            found.append(
                f"{apart:.0%} of the noise lies at other frequencies than in the nearest series "
                f"trained on, allowed {_APART:.0%}"
            )
        return found

    def unjudged(self, facts: SeriesFacts) -> list[str]:
        """What is not known of the training data or of the series, by name."""
        found = [name for name, *values, _ in self._ranges(facts) if None in values]
        return found + ["noise spectrum"] * (self._spectrum_apart(facts) is None)

    def _spectrum_apart(self, facts: SeriesFacts) -> float | None:
        """Half the absolute difference of shares, to the nearest spectrum trained on."""
        if self.spectra is None or facts.spectrum is None:
            return None
        theirs = np.array(facts.spectrum)
        return min(float(np.abs(np.array(one) - theirs).sum() / 2) for one in self.spectra)

    def _ranges(
        self, facts: SeriesFacts
    ) -> tuple[tuple[str, float | None, Range | None, str], ...]:
        """Names, values of a series, ranges and units."""
        return (
            ("pixel size", facts.pixel, self.pixel, "mm"),
            ("slice increment", facts.increment, self.increment, "mm"),
            ("slice thickness", facts.thickness, self.thickness, "mm"),
            ("matrix", facts.matrix, self.matrix, "pixels"),
            ("noise level", facts.noise, self.noise, "HU"),
            ("mean frequency of the noise", facts.frequency, self.frequency, "1/mm"),
            ("highest HU", facts.highest, self.highest, "HU"),
            ("tube voltage", facts.kvp, self.kvp, "kV"),
            ("dose", facts.dose, self.dose, "of full dose"),
        )


def measured_noise(volume: HuVolume) -> float:
    """Median noise level of evenly spaced slices of a volume, HU."""
    slices = int(volume.shape[0])
    chosen = np.unique(np.linspace(0, slices - 1, JUDGED_SLICES).astype(int))
    levels = [
        float(noise_level(torch.from_numpy(np.array(volume[z : z + 1])))) for z in chosen.tolist()
    ]
    return float(np.median(levels))
