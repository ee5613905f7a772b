"""How full-dose series without a partner get a simulated one: what a user may say of it."""

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat

from storage.ingest.toml_files import read_model
from storage.vocabulary import Anatomy

Share = Annotated[float, Field(gt=0, lt=1)]


class KernelCurve(BaseModel):
    """A reconstruction kernel by its MTF."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mtf: tuple[NonNegativeFloat, ...] = Field(
        min_length=2, description="At 0, `step`, 2 `step`, ... cycles/mm; 1 at low frequencies."
    )
    step: PositiveFloat = Field(description="Cycles/mm.")


class DetectorRules(BaseModel):
    """What is known of a scanner: a detector file, as `hqinet calibrate` writes one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    photons: PositiveFloat | None = Field(
        None,
        description="Counts of an unattenuated ray, a pixel wide, of one of 720 views at full "
        "dose; default: by the noise of each series.",
    )
    electronic: NonNegativeFloat = Field(0, description="Variance of readout, photons squared.")
    bowtie: tuple[PositiveFloat, ...] = Field(
        (), description="Relative photons from one edge of the fan to the other."
    )
    tube_current: tuple[PositiveFloat, ...] = Field(
        (), description="Relative photons over half a turn."
    )
    kernels: dict[str, KernelCurve] = Field(
        {}, description="By name; another kernel is estimated from its series."
    )


class SimulationRules(BaseModel):
    """How a full-dose series without a partner gets a simulated one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dose: Share | dict[Anatomy, Share] = Field(
        description="Dose to simulate over the full dose: one, or one an anatomy."
    )
    seed: int = Field(0, ge=0, description="Of the noise.")
    realisations: int = Field(
        1, ge=1, le=16, description="Low doses of different noise; training draws among them."
    )
    detector: DetectorRules | None = None
    version: int = Field(1, description="Of the simulator; set by the program.")

    def dose_of(self, part: Anatomy) -> float | None:
        """The dose to simulate for an anatomy; None where none is given."""
        return self.dose.get(part) if isinstance(self.dose, dict) else self.dose

    def made_with(self) -> dict[str, str | int]:
        """What tells a partner from another of the same full dose at the same dose."""
        made: dict[str, str | int] = {"seed": self.seed, "version": self.version}
        # What is not asked for is not named: partners made before it could be stay what they are.
        if self.realisations > 1:
            made["realisations"] = self.realisations
        if self.detector is not None:
            made["detector"] = hashlib.sha256(self.detector.model_dump_json().encode()).hexdigest()
        return made


def read_detector_file(path: Path) -> DetectorRules:
    """Read a detector file. Raises CohortFileError as `read_model` does."""
    return read_model("detector file", path, DetectorRules)
