"""What an evaluation says of a version, as the gate takes it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from hqinet.quality.reader_study import ReaderStudy
from hqinet.quality.tasks import TaskFigures


@dataclass(frozen=True)
class Evidence:
    """What an evaluation says of a version.

    patients: a `per_patient` frame with the images "low" and "restored".
    failures: why a patient could not be restored, by patient; the metrics are NaN there.
    simulated: patients whose low dose was simulated from the full dose.
    tasks: what was measured of the reader's tasks, by patient who could be restored.
    study: what an observer makes of lesions, over all of them.
    """

    patients: pd.DataFrame
    failures: Mapping[str, str] = field(default_factory=dict)
    simulated: frozenset[str] = frozenset()
    tasks: Mapping[str, TaskFigures] = field(default_factory=dict)
    study: ReaderStudy = field(default_factory=ReaderStudy)

    def image(self, name: str) -> pd.DataFrame:
        """The rows of one image."""
        return self.patients[self.patients["image"] == name]

    def why(self, patient: str) -> str:
        """Why a patient has no figure."""
        return self.failures.get(patient, "the metric is not defined there")
