"""Ingest without Prefect and Dask: the same parts that the flow composes, in this process."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.dataset.rows import Refused
from storage.dataset.versions import Dataset, Snapshot
from storage.dicom.headers import FileHeader, read_header
from storage.dicom.limits import Limits
from storage.dicom.pixels import HuDecoder
from storage.dicom.series import order
from storage.ingest.conversion import convert
from storage.ingest.delivery import Delivery
from storage.ingest.inventory import take_inventory
from storage.ingest.outcome import Outcome, merge
from storage.ingest.planning import plan


def here(function: Callable, items: Iterable) -> Iterator[tuple]:
    """Work in this process, where a failure ends it."""
    for item in items:
        yield item, function(item)


@pytest.fixture(name="here")
def run_here() -> Callable:
    """Where work runs: in this process."""
    return here


@dataclass
class Delivered:
    """What became of a delivery."""

    outcome: Outcome
    snapshot: Snapshot

    @property
    def accepted(self) -> list[str]:
        return [row.patient for row in self.outcome.accepted]

    @property
    def refused(self) -> list[tuple[str | None, str]]:
        return [(row.patient, row.code) for row in self.outcome.refused]

    @property
    def refusal(self) -> Refused:
        """The only refusal."""
        (row,) = self.outcome.refused
        return row


@pytest.fixture
def delivery(tmp_path: Path, dataset: Dataset) -> Callable[..., Delivery]:
    """A delivery into the dataset, with whatever of its settings a test wants."""

    def delivery(source: Path, cohort: str = "cohort", **settings: Any) -> Delivery:
        made = {
            "dataset": dataset,
            "memory": tmp_path / "memory",
            "scratch": tmp_path / "scratch",
        } | settings
        return Delivery(source=source, cohort=cohort, **made)

    return delivery


@pytest.fixture
def deliver(delivery: Callable[..., Delivery]) -> Callable[..., Delivered]:
    """Bring a folder of DICOM into a dataset."""

    def deliver(
        dataset: Dataset, source: Path, cohort: str = "cohort", **settings: Any
    ) -> Delivered:
        opened = delivery(source, cohort, dataset=dataset, **settings)
        inventory = take_inventory(opened, here)
        planned = plan(opened, inventory)
        outcome = merge(opened, inventory, planned, list(convert(opened, planned, here)))
        return Delivered(outcome, dataset.snapshot())

    return deliver


def headers(folder: Path) -> list[FileHeader]:
    """Of all files of a folder."""
    return [read_header(folder, file.name) for file in sorted(folder.iterdir())]


@pytest.fixture
def read() -> Callable[..., tuple[np.ndarray, HuDecoder]]:
    """The only series of a folder as HU, and the decoder that made them."""

    def read(folder: Path, limits: Limits | None = None) -> tuple[np.ndarray, HuDecoder]:
        decoder = HuDecoder(folder, order(headers(folder), limits or Limits()))
        return np.stack(list(decoder)), decoder

    return read


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """An empty dataset in a folder."""
    dataset = Dataset(tmp_path / "dataset")
    dataset.create()
    return dataset
