"""The rows of a commit: an accepted pair, a refusal, or a split that is reserved.

Rows are written in the schema of `SCHEMA_NUMBER`. Tables of older schemas are read as they are,
and their rows have the digest that they had then: what a row's digest is made of never changes,
and a column that is added to `_DIGESTED_LATER` counts only in rows that have it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from storage.dataset import keys
from storage.dataset.splits import Split
from storage.errors import DatasetError
from storage.stores import delta


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A patient's pair, whose volume lies in the store.

    Attributes:
        split: None until the patient is placed, which a commit does.
        source: folder below the delivery (hashed when pseudonymising).
        path: of the volume below the dataset's root.
        digest: of both images and of what describes them.
        matrix: (rows, columns).
        spacing: (z, y, x) in mm.
        dose_fraction: dose of the low series as a share of the full dose, where it is known.
        note: what ingestion did to the data that the reader should know (cropped, clipped).
        fingerprint: of the files and the rules it was decided from.
        pixels: digest of the full-dose images alone: one person under two names has the same.
        slice_fingerprints: digests of some slices of either dose, to find a partial copy.
        identity_evidence: digests of the UIDs of studies and frames of reference, and of the
            folder they were read from: what shows that a changed volume is of the same person.
        frame_of_reference: digest of the full-dose series' own.
        size: bytes of the volume's objects; None where it was written before this was kept.
        implied_dose: of the low series, as the noise of both images has it; None where it could
            not be measured, or was not yet.
        simulated: what the low dose was made with; None where it was delivered.
        realisations: of the low dose, which differ in their noise; more than one if simulated.
        kvp: tube voltage of the low series in kV; None where it states none, its images differ, or
            it was ingested before this was kept.
        thickness: of the low series' slices in mm; None as above.
    """

    patient: str
    cohort: str
    path: str
    digest: str
    slices: int
    matrix: tuple[int, int]
    spacing: tuple[float, float, float]
    anatomy: str
    vendor: str
    kernel: str | None = None
    dose_fraction: float | None = None
    split: Split | None = None
    source: str | None = None
    note: str | None = None
    fingerprint: str | None = None
    pixels: str = ""
    slice_fingerprints: tuple[str, ...] = ()
    identity_evidence: tuple[str, ...] = ()
    frame_of_reference: str = ""
    size: int | None = None
    implied_dose: float | None = None
    simulated: str | None = None
    realisations: int = 1
    kvp: float | None = None
    thickness: float | None = None
    status: Literal["accepted"] = "accepted"

    @property
    def key(self) -> str:
        """What the row is about."""
        return keys.patient(self.patient)

    @property
    def identity_marks(self) -> tuple[str, ...]:
        """What two volumes of the same images share."""
        return tuple(mark for mark in (self.pixels, *self.slice_fingerprints) if mark)


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A patient, series or folder that was refused.

    Attributes:
        key: see `storage.dataset.keys`.
        code, reason: see `storage.refusals`.
        source, files: folder or file below the delivery, and the files that show what is wrong
            (hashed when pseudonymising); unreadable ones all, of others the first.
        fingerprint: of the pair, where its pixels were read to know.
        delivery: digest of the folder that was delivered; empty where this was not kept.
    """

    key: str
    cohort: str
    patient: str | None
    code: str
    reason: str
    source: str | None = None
    files: tuple[str, ...] = ()
    fingerprint: str | None = None
    delivery: str = ""
    status: Literal["refused"] = "refused"

    @property
    def subject(self) -> str:
        """What the refusal is of, and ends with."""
        return keys.subject(self.key)

    def shown(self) -> dict[str, Any]:
        """What a reader is told of it."""
        names = ("cohort", "source", "patient", "code", "reason")
        return {name: getattr(self, name) for name in names} | {"files": list(self.files)}


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """The split of a patient without data in a commit: rolled back, or fixed beforehand."""

    patient: str
    cohort: str
    split: Split
    status: Literal["reserved"] = "reserved"

    @property
    def key(self) -> str:
        """What the row is about."""
        return keys.patient(self.patient)


Row = Accepted | Refused | Reserved

SCHEMA_NUMBER = 5
_TEXTS = pa.list_(pa.string())
_FIRST_COLUMNS = {
    "key": pa.string(),
    "cohort": pa.string(),
    "status": pa.string(),
    "patient": pa.string(),
    "split": pa.string(),
    "code": pa.string(),
    "reason": pa.string(),
    "source": pa.string(),
    "files": _TEXTS,
    "path": pa.string(),
    "digest": pa.string(),
    "slices": pa.int64(),
    "rows": pa.int64(),
    "columns": pa.int64(),
    "spacing_z": pa.float64(),
    "spacing_y": pa.float64(),
    "spacing_x": pa.float64(),
    "anatomy": pa.string(),
    "dose_fraction": pa.float64(),
    "vendor": pa.string(),
    "kernel": pa.string(),
    "note": pa.string(),
    "fingerprint": pa.string(),
    "pixels": pa.string(),
}
SCHEMA = delta.schema(
    _FIRST_COLUMNS
    | {
        "slice_fingerprints": _TEXTS,
        "identity_evidence": _TEXTS,
        "frame_of_reference": pa.string(),
        "size": pa.int64(),
        "delivery": pa.string(),
        "implied_dose": pa.float64(),
        "simulated": pa.string(),
        "realisations": pa.int64(),
        "kvp": pa.float64(),
        "thickness": pa.float64(),
    },
    SCHEMA_NUMBER,
)

# Columns that two schemas call differently, by the number of the schema that they had.
_RENAMED = {1: {"studies": "identity_evidence"}}
# Of the data, not of the delivery: another copy of the same files changes none of them.
_DIGESTED = [name for name in _FIRST_COLUMNS if name != "fingerprint"]
# What doses are implied and simulated is not among them: the digest of the volume stands for both.
# Nor are tube voltage and thickness: the same data would be other data than before they were kept.
_DIGESTED_LATER: tuple[str, ...] = ()


def order(row: Row) -> tuple[str, str]:
    """Rows of a commit are sorted by this."""
    return row.key, row.cohort


def rows_digest(rows: Iterable[Row]) -> str:
    """SHA-256 of the rows that are data (accepted and refused), whatever their order."""
    lines = (_digested(_record(row)) for row in rows if not isinstance(row, Reserved))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _digested(record: Mapping[str, Any]) -> str:
    # The fingerprints of slices were one text when digests were first made.
    first = [record[name] for name in _DIGESTED] + [" ".join(record["slice_fingerprints"])]
    later = [[name, record[name]] for name in _DIGESTED_LATER if record[name] is not None]
    return json.dumps(first + later)


def to_table(rows: Sequence[Row]) -> pa.Table:
    """The rows in the present schema."""
    records = [_record(row) for row in rows]
    columns = {name: [record[name] for record in records] for name in SCHEMA.names}
    return pa.Table.from_pydict(columns, schema=SCHEMA)


def from_table(content: pa.Table, schema: int) -> list[Row]:
    """The rows of a table that was written in the schema of that number, sorted.

    Raises:
        DatasetError: a later version of this program wrote it.
    """
    if schema > SCHEMA_NUMBER:
        raise DatasetError(
            f"the dataset is written in schema {schema}, and this version of hqinet knows 1 to "
            f"{SCHEMA_NUMBER}: install a later one"
        )
    renamed = _RENAMED.get(schema, {})
    names = [renamed.get(name, name) for name in content.column_names]
    columns = [column.to_pylist() for column in content.columns]
    rows = (_row(dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True))
    return sorted(rows, key=order)


def _record(row: Row) -> dict[str, Any]:
    """A row by the columns of the present schema; None where it has no such value."""
    # Not `asdict`, which copies each fingerprint of each of 20,000 rows: seconds.
    record = dict.fromkeys(SCHEMA.names) | {"key": row.key, **vars(row)}
    if isinstance(row, Accepted):
        record["rows"], record["columns"] = record.pop("matrix")
        for axis, step in zip("zyx", record.pop("spacing"), strict=True):
            record[f"spacing_{axis}"] = step
    lists = ("files", "slice_fingerprints", "identity_evidence")
    return record | {name: list(record[name] or ()) for name in lists}


def _row(record: Mapping[str, Any]) -> Row:
    of = {name: value for name, value in record.items() if value is not None}
    if record["status"] == "reserved":
        return Reserved(**{name: of[name] for name in ("patient", "cohort", "split")})
    if record["status"] == "refused":
        names = ("key", "cohort", "code", "reason", "source", "fingerprint", "delivery")
        known = {name: of[name] for name in names if name in of}
        return Refused(**known, patient=record["patient"], files=tuple(record["files"] or ()))
    return _accepted(of)


def _accepted(of: Mapping[str, Any]) -> Accepted:
    known = {name: value for name, value in of.items() if name in Accepted.__dataclass_fields__}
    marks = of.get("slice_fingerprints", of.get("sketch", "").split())
    return Accepted(
        **known
        | {
            "matrix": (of["rows"], of["columns"]),
            "spacing": (of["spacing_z"], of["spacing_y"], of["spacing_x"]),
            "slice_fingerprints": tuple(marks),
            "identity_evidence": tuple(of.get("identity_evidence", ())),
        }
    )
