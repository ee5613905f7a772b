"""A delivery: the folder that arrived, how it is to be understood, and the dataset it goes into."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from storage.dataset.splits import TARGETS, Split
from storage.dataset.versions import Dataset
from storage.dicom.limits import Limits
from storage.errors import SourceError
from storage.ingest.cohort import SYNTHETIC, CohortRules
from storage.ingest.pairing import Pair
from storage.ingest.pseudonyms import Pseudonyms

Item = TypeVar("Item")
Result = TypeVar("Result")


class Run(Protocol):
    """Where work runs: in this process, or on a cluster."""

    def __call__(
        self, function: Callable[[Item], Result], items: Iterable[Item], /
    ) -> Iterable[tuple[Item, Result | Exception]]:
        """Each item with what the function returned or raised, in any order."""


@dataclass(frozen=True)
class SimulatedPartner:
    """A low-dose volume made from a full-dose one.

    Attributes:
        hu: (realisations, slices, rows, columns) int16.
        parameters: what was measured and chosen for it, beside what was asked for: attributes of
            the volume, as JSON.
        shown: the same in a few words, for the catalog and the report.
        note: what a reader of the catalog should know.
    """

    hu: NDArray[np.int16]
    parameters: dict[str, object]
    shown: str
    note: str


class Simulator(Protocol):
    """Makes low dose from full dose; picklable, for a cluster. A store knows no physics."""

    def __call__(self, hu: NDArray[np.int16], pair: Pair) -> SimulatedPartner:
        """Return the partner of a full-dose volume, (slices, rows, columns) HU.

        Raises:
            Refusal: no partner of that dose can be made.
        """


@dataclass(frozen=True)
class Delivery:
    """What is ingested. It holds the secret of the pseudonyms: it stays in this process.

    Attributes:
        source: folder; it is never written to.
        rules: of the cohort file.
        memory: folder for what is remembered between two ingests; may be lost at any time.
        scratch: folder on a local disk of the workers for volumes under construction.
        simulate: makes the partners that `rules.simulate` asks for.
        made_here: SeriesInstanceUIDs of what was restored here.
    """

    source: Path
    cohort: str
    dataset: Dataset
    memory: Path
    scratch: Path
    rules: CohortRules = field(default_factory=CohortRules)
    names: Pseudonyms = field(default_factory=Pseudonyms)
    limits: Limits = field(default_factory=Limits)
    split_targets: Mapping[Split, float] = field(default_factory=lambda: TARGETS)
    simulate: Simulator | None = None
    made_here: frozenset[str] = frozenset()

    @property
    def root(self) -> Path:
        """The folder, whatever links lead to it."""
        return self.source.resolve()

    @property
    def digest(self) -> str:
        """Of the folder's place: the same delivery under another cohort's name has the same."""
        return self.names.digest(f"delivery:{self.root}")


def require_folder(source: Path, shown: str) -> None:
    """Raise SourceError if a delivery is not there or no folder.

    Args:
        shown: its path as it may be shown.
    """
    if not source.is_dir():
        raise SourceError(
            f"source {shown} is {'no folder' if source.exists() else 'not there'}"
            ": give the folder of the delivery"
        )


def cohort_name(source: Path, given: str | None, rules: CohortRules, names: Pseudonyms) -> str:
    """The name of the cohort: as given, else the cohort file's, else the folder's."""
    # A folder's name may name a person; a name that was given is meant to be shown.
    folder = source.absolute().name
    return given or rules.name or (names.path(folder) if names.on else folder)


def refuse_phantoms(dataset: Dataset, cohort: str) -> None:
    """Raise SourceError if the dataset is of the demo: patients never stand among phantoms."""
    if cohort != SYNTHETIC and SYNTHETIC in dataset.snapshot().cohorts:
        raise SourceError(
            f"the dataset at {dataset.location} holds the phantoms of `hqinet demo`, cohort "
            f"{SYNTHETIC}: ingest {cohort} into another one (`--home DIR`, or HQINET_DATASET)"
        )
