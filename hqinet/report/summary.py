"""`summary.json`: what an evaluation says in numbers, in one form for whoever reads it again."""

import json
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hqinet.quality.evidence import Evidence
from hqinet.quality.gate import Verdict
from hqinet.quality.metrics import DEFINITION, METRICS
from hqinet.quality.reader_study import ReaderStudy
from hqinet.quality.tasks import TaskFigures

SCHEMA = 3
"""Of `summary.json`; one of another number is not read, but made anew."""
Records = list[dict[str, Any]]


class NoisePowerOfImage(BaseModel):
    """An NPS: `power` (HU^2 mm^2) at `frequency` (1/mm), over `regions` regions."""

    frequency: list[float]
    power: list[float]
    regions: int


class Summary(BaseModel):
    """The content of `summary.json`; undefined numbers are null. Tables are lists of rows."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    schema_: int = Field(SCHEMA, alias="schema")
    definition: int = Field(DEFINITION, description="Of the metrics; see `hqinet.quality.metrics`.")
    evaluated_by: str = Field(description="Version of the code that measured.")
    dataset: str = Field(description="Identity of the dataset.")
    dataset_digest: str = Field(description="Digest of the commit's rows.")
    provenance: dict[str, str]
    acquisition: dict[str, str]
    simulated: dict[str, str] = Field(
        description="Of patients whose low dose was simulated: what it was made with."
    )
    patients: Records = Field(description="The `per_patient` table.")
    failures: dict[str, str] = Field(description="Why a patient could not be restored.")
    summary: Records
    restored_less_low: Records
    restored_less_champion: Records | None
    left_out: Records
    tasks: dict[str, TaskFigures] = Field(description="Of each patient who could be restored.")
    study: ReaderStudy
    noise_power: dict[str, dict[str, NoisePowerOfImage]]
    verdict: Verdict | None

    def table(self) -> pd.DataFrame:
        """The `per_patient` table; null is NaN again."""
        table = pd.DataFrame(self.patients)
        return table.astype({name: float for name in METRICS if name in table})

    def evidence(self) -> Evidence:
        """What the gate judges by."""
        return Evidence(
            self.table(), self.failures, frozenset(self.simulated), self.tasks, self.study
        )

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, allow_nan=False)


def load_summary(text: str) -> Summary | None:
    """Read a `summary.json`; None for one of another schema, or half of one after a kill."""
    try:
        content = json.loads(text)
        if content.get("schema") != SCHEMA:
            return None
        return Summary.model_validate(content)
    except (ValueError, AttributeError, ValidationError):
        return None


def records(table: pd.DataFrame) -> Records:
    """A table's rows with null for what is not a number."""
    return json.loads(table.to_json(orient="records", double_precision=12))
