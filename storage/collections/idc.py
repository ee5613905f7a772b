"""Public collections of the Imaging Data Commons: what there is, and how to fetch it.

The series list comes from the package `idc-index-data` (optional extra `idc`), the files from
the public bucket, anonymously. Files land as `<series uuid>/<uuid>.dcm`, which ingest reads.
"""

import hashlib
import importlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import obstore
import pyarrow.compute as pc
import pyarrow.parquet as pq
from obstore.store import S3Store
from pydicom.uid import CTImageStorage

from storage.errors import CollectionError, StoreError
from storage.stores import files
from storage.stores.location import storage_errors
from storage.vocabulary import anatomy_of, collection_anatomy

_COLUMNS = [
    "collection_id",
    "PatientID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "BodyPartExamined",
    "SOPClassUID",
    "instanceCount",
    "series_size_MB",
    "aws_bucket",
    "crdc_series_uuid",
]
ObjectMeta = Mapping[str, Any]
"""What a listing says of an object: `path`, `size`, `e_tag`."""
_REGION = "us-east-1"
_PUBLIC = f"https://s3.{_REGION}.amazonaws.com"
_MEGABYTE = 1_000_000

# SeriesDescription of the images, whose case varies.
_DOSES = {"low": r"low[\s_-]*dose", "full": r"full[\s_-]*dose"}
# The MD5 of an object that was put in one piece; of others the tag is no checksum.
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_GO_ON = "then fetch again: it goes on where it was"


@dataclass(frozen=True)
class PublicSeries:
    """One image series of a pair.

    Attributes:
        files: how many there are, by the index.
        size: bytes, by the index; rounded there.
        prefix: folder in the bucket, the series' UUID.
    """

    patient: str
    dose: Literal["low", "full"]
    anatomy: str
    files: int
    size: int
    bucket: str
    prefix: str


@dataclass(frozen=True)
class Selection:
    """Paired series to be fetched."""

    series: tuple[PublicSeries, ...]

    @property
    def patients(self) -> list[str]:
        """Who is in it, sorted."""
        return sorted({series.patient for series in self.series})

    @property
    def files(self) -> int:
        """How many files it has."""
        return sum(series.files for series in self.series)

    @property
    def size(self) -> int:
        """Bytes, by the index."""
        return sum(series.size for series in self.series)


@dataclass(frozen=True)
class Fetched:
    """What a fetch did: files and bytes downloaded, and files that were there already."""

    files: int
    size: int
    present: int


def select(
    collection: str,
    *,
    patients: Iterable[str] | None = None,
    anatomy: str | None = None,
    limit: int | None = None,
    index: Path | None = None,
) -> Selection:
    """The image series of patients who have low and full dose; sorted by patient.

    Args:
        patients: only these.
        anatomy: only of this one, as `chest`.
        limit: of so many patients.
        index: a parquet file in the form of the IDC index; default: the installed one.

    Raises:
        CollectionError: the extra is not installed, or there is no such collection, patient or
            anatomy with pairs.
    """
    found: dict[str, list[PublicSeries]] = {}
    for values in _rows(collection, index):
        dose = _dose(values["SeriesDescription"] or "")
        if values["SOPClassUID"] != CTImageStorage or dose is None:
            continue
        patient = values["PatientID"]
        found.setdefault(patient, []).append(
            PublicSeries(
                patient=patient,
                dose=dose,
                anatomy=collection_anatomy(patient) or anatomy_of(values["BodyPartExamined"] or ""),
                files=values["instanceCount"],
                size=round(values["series_size_MB"] * _MEGABYTE),
                bucket=values["aws_bucket"],
                prefix=values["crdc_series_uuid"],
            )
        )
    pairs = {p: s for p, s in found.items() if {one.dose for one in s} == {"low", "full"}}
    chosen = _choose(pairs, patients, anatomy)[:limit]
    return Selection(tuple(s for p in chosen for s in sorted(pairs[p], key=lambda s: s.prefix)))


def _dose(description: str) -> Literal["low", "full"] | None:
    """The dose that a description names; None where it names none, or both."""
    named = [d for d, pattern in _DOSES.items() if re.search(pattern, description, re.IGNORECASE)]
    return named[0] if len(named) == 1 else None


def _rows(collection: str, index: Path | None) -> list[dict]:
    if index is None:
        try:
            index = importlib.import_module("idc_index_data").IDC_INDEX_PARQUET_FILEPATH
        except ImportError as error:
            raise CollectionError(
                "the series list of the Imaging Data Commons is not installed: "
                "pip install 'hqinet[idc]'"
            ) from error
    with storage_errors(str(index)):
        table = pq.read_table(
            index, columns=_COLUMNS, filters=pc.field("collection_id") == collection
        )
    if not table.num_rows:
        raise CollectionError(
            f"there is no collection {collection!r} in the index; the one with low-dose pairs is "
            "ldct_and_projection_data"
        )
    return table.to_pylist()


def _choose(
    pairs: dict[str, list[PublicSeries]], patients: Iterable[str] | None, anatomy: str | None
) -> list[str]:
    wanted = sorted(pairs) if patients is None else list(dict.fromkeys(patients))
    unpaired = [patient for patient in wanted if patient not in pairs]
    if unpaired:
        raise CollectionError(
            f"{len(unpaired)} of the patients have no pair of low-dose and full-dose images in "
            f"the collection, the first is {unpaired[0]}; {len(pairs)} patients have one"
        )
    chosen = [p for p in wanted if anatomy in (None, pairs[p][0].anatomy)]
    if not chosen:
        known = ", ".join(sorted({series[0].anatomy for series in pairs.values()}))
        raise CollectionError(
            f"no pair of anatomy {anatomy!r}; there are pairs of {known or 'none'}"
        )
    return chosen


def fetch(
    selection: Selection,
    folder: Path,
    *,
    endpoint: str | None = None,
    workers: int = 16,
    progress: Callable[[int, int], None] = lambda _files, _size: None,
) -> Fetched:
    """Download a selection; files that are there whole are left as they are.

    Args:
        endpoint: of an S3 server that holds the buckets; default: the public one.
        workers: downloads at a time.
        progress: called with files and bytes after each file, also one that was there.

    Raises:
        CollectionError: the bucket does not hold what the index says of some series (all others
            are downloaded first).
        StoreError: the network or disk fail; what was downloaded stays, and the next fetch goes
            on from there.
    """
    stores = {bucket: _store(bucket, endpoint) for bucket in {s.bucket for s in selection.series}}
    for series in selection.series:
        files.remove_drafts(folder / series.prefix)
    fetched = size = present = 0
    with ThreadPoolExecutor(workers) as pool:
        listings = pool.map(
            lambda series: _listing(stores[series.bucket], series), selection.series
        )
        listed = dict(zip(selection.series, listings, strict=True))
        tasks = {
            pool.submit(_download, stores[series.bucket], entry, folder): entry["size"]
            for series, listing in listed.items()
            if len(listing) == series.files
            for entry in listing
        }
        try:
            for task in as_completed(tasks):
                if task.result():
                    fetched, size = fetched + 1, size + tasks[task]
                else:
                    present += 1
                progress(1, tasks[task])
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    _check_listings(listed)
    return Fetched(fetched, size, present)


def _store(bucket: str, endpoint: str | None) -> S3Store:
    # The public bucket is read anonymously; a mirror may want the usual credentials.
    anonymous = endpoint is None or "AWS_ACCESS_KEY_ID" not in os.environ
    # Named, or AWS_ENDPOINT_URL, which may be the dataset's, would decide.
    endpoint = endpoint or _PUBLIC
    if not re.match(r"https?://[^/]", endpoint):
        raise StoreError(f"endpoint {endpoint!r} is no URL: give it as https://host[:port]")
    with storage_errors(f"s3://{bucket} at {endpoint}", _GO_ON):
        return S3Store(
            bucket,
            region=_REGION,
            endpoint=endpoint,
            skip_signature=anonymous,
            client_options={"allow_http": endpoint.startswith("http://")},
        )


def _listing(store: S3Store, series: PublicSeries) -> Sequence[ObjectMeta]:
    """A series' files in the bucket."""
    with storage_errors(f"s3://{series.bucket}/{series.prefix}", _GO_ON):
        return [entry for batch in obstore.list(store, series.prefix) for entry in batch]


def _check_listings(listed: Mapping[PublicSeries, Sequence[ObjectMeta]]) -> None:
    """Every series has as many files in the bucket as the index says."""
    differing = [s for s, listing in listed.items() if len(listing) != s.files]
    if differing:
        first = differing[0]
        raise CollectionError(
            f"s3://{first.bucket}/{first.prefix} of {first.patient} holds {len(listed[first])} "
            f"files, the index says {first.files}: update idc-index-data; {len(differing)} of "
            f"{len(listed)} series are left out for that, the others are fetched"
        )


def _download(store: S3Store, entry: ObjectMeta, folder: Path) -> bool:
    """Fetch one file whole or not at all; False if it was there."""
    target = folder / entry["path"]
    with storage_errors(str(target), _GO_ON):
        if target.is_file() and not _difference(target.read_bytes(), entry):
            return False
        content = bytes(obstore.get(store, entry["path"]).bytes())
        difference = _difference(content, entry)
        if difference:
            raise StoreError(f"{target}: {difference}: fetch again")
        files.write(target, content)
    return True


def _difference(content: bytes, entry: ObjectMeta) -> str | None:
    """What tells a file from the object in the bucket, by size and, where it is one, checksum."""
    if len(content) != entry["size"]:
        return f"{len(content)} bytes came, {entry['size']} were announced"
    checksum = _MD5.fullmatch(entry["e_tag"] or "")
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if checksum and checksum[1] != found:
        return f"its checksum is {found}, {checksum[1]} was announced"
    return None
