"""Ingest without Prefect and Dask: the same parts that the flow composes, in this process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.admission import Admission, admit
from storage.catalog import Row
from storage.cohort import CohortRules
from storage.conversion import Conversion, refused_row
from storage.dataset import Dataset, Snapshot
from storage.dicom import Limits
from storage.pairing import plan
from storage.pseudonym import Pseudonyms
from storage.scan import scan


@dataclass
class Delivered:
    """What became of a delivery."""

    admission: Admission
    snapshot: Snapshot

    @property
    def accepted(self) -> list[str]:
        return [row.patient or "" for row in self.admission.accepted]

    @property
    def refused(self) -> list[tuple[str | None, str | None]]:
        return [(row.patient, row.code) for row in self.admission.refused]

    @property
    def refusal(self) -> Row:
        """The only refusal."""
        (row,) = self.admission.refused
        return row


@pytest.fixture
def deliver(tmp_path: Path) -> Callable[..., Delivered]:
    """Bring a folder of DICOM into a dataset."""

    def deliver(
        dataset: Dataset,
        source: Path,
        cohort: str = "cohort",
        rules: CohortRules | None = None,
        limits: Limits | None = None,
        names: Pseudonyms | None = None,
    ) -> Delivered:
        rules, limits = rules or CohortRules(), limits or Limits()
        names = names or Pseudonyms()
        found = scan(source, rules, names, tmp_path / "memory", map)
        planned = plan(found, rules, limits, names)
        convert = Conversion(source, dataset.location, tmp_path / "scratch", cohort, names)
        incoming = [*map(convert, planned.pairs)]
        incoming += [refused_row(refusal, cohort) for refusal in planned.refusals]
        decided = Admission()

        def decide(current: Snapshot) -> list[Row] | None:
            nonlocal decided
            decided = admit(current.entries, incoming, planned.seen, cohort)
            return decided.rows

        dataset.create()
        snapshot = dataset.commit(decide, action="ingest", cohort=cohort)
        return Delivered(decided, snapshot)

    return deliver


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """An empty dataset in a folder."""
    dataset = Dataset(tmp_path / "dataset")
    dataset.create()
    return dataset
