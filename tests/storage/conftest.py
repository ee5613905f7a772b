"""Ingest without Prefect and Dask: the same parts that the flow composes, in this process."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from storage.dataset.catalog import Row
from storage.dataset.versions import Dataset, Snapshot
from storage.dicom.pixels import SliceReader
from storage.dicom.series import Limits, order
from storage.ingest.cohort import CohortRules
from storage.ingest.conversion import Conversion, refused_row
from storage.ingest.inventory import take_inventory
from storage.ingest.merge import Merged, merge_delivery
from storage.ingest.pairing import plan
from storage.ingest.pseudonyms import Pseudonyms


@dataclass
class Delivered:
    """What became of a delivery."""

    admission: Merged
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
        found = take_inventory(source, rules, names, tmp_path / "memory", map)
        planned = plan(found, rules, limits, names)
        convert = Conversion(source, dataset.location, tmp_path / "scratch", cohort, names)
        incoming = [*map(convert, planned.pairs)]
        incoming += [refused_row(refusal, cohort) for refusal in planned.refusals]
        decided = Merged()

        def decide(current: Snapshot) -> list[Row] | None:
            nonlocal decided
            decided = merge_delivery(current.entries, incoming, planned.seen, cohort)
            return decided.rows

        dataset.create()
        snapshot = dataset.commit(decide, action="ingest", cohort=cohort)
        return Delivered(decided, snapshot)

    return deliver


@pytest.fixture
def read() -> Callable[..., tuple[np.ndarray, SliceReader]]:
    """The only series of a folder as HU, and the reader that made them."""

    def read(folder: Path, limits: Limits | None = None) -> tuple[np.ndarray, SliceReader]:
        found = take_inventory(folder, CohortRules(), Pseudonyms(), folder.parent / "memory", map)
        reader = SliceReader(folder, order(found.records, limits or Limits()))
        return np.stack(list(reader)), reader

    return read


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """An empty dataset in a folder."""
    dataset = Dataset(tmp_path / "dataset")
    dataset.create()
    return dataset


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """Options of a real S3 server on loopback with a bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A process of its own: a thread would wait for the lock that the client's call holds.
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        options = {
            "aws_endpoint": f"http://127.0.0.1:{port}",
            "aws_access_key_id": "key",
            "aws_secret_access_key": "secret",
            "aws_region": "us-east-1",
        }
        for _ in range(150):
            with suppress(httpx.TransportError):
                httpx.put(f"{options['aws_endpoint']}/ct-data").raise_for_status()
                break
            time.sleep(0.2)
        yield options
        server.terminate()
