"""Volumes of HU as Zarr: read lazily, and known to be whole or not without reading a pixel.

A pair lies at `volumes/<patient>/<digest>/`: a Zarr group whose attributes describe it, with the
arrays `low` and `full`, both int16 HU (slice, row, column), and `low_2`, `low_3`, ... where the low
dose was simulated more than once. `storage.dataset.writing` writes it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import obstore

from storage.dataset.hashing import OWN_DIGEST, SIMULATED, dose_digest, pair_digest
from storage.dataset.lazy_volume import LazyVolume
from storage.dataset.rows import Accepted
from storage.errors import DatasetError, StorageError
from storage.stores.location import Location, storage_errors

if TYPE_CHECKING:
    import zarr

SHARD_SLICES = 40


def low_arrays(realisations: int) -> tuple[str, ...]:
    """The names of the arrays of a pair's low dose."""
    return ("low", *(f"low_{number}" for number in range(2, realisations + 1)))


@dataclass(frozen=True)
class StoredPair:
    """One pair of the dataset, read lazily; picklable, so that other processes can read it.

    Attributes:
        spacing: (z, y, x) in mm; z is the slice increment, not the slice thickness.
        positions: mm along the slice normal, ascending, one for each slice.
        repeats: further realisations of a low dose that was simulated.
        attributes: all that describes the volume, `storage.dicom.geometry.Geometry` among it.
    """

    patient: str
    anatomy: str
    spacing: tuple[float, float, float]
    positions: tuple[float, ...]
    low: LazyVolume
    full: LazyVolume
    repeats: tuple[LazyVolume, ...]
    attributes: Mapping[str, Any]


def open_volume(location: Location, row: Accepted) -> StoredPair:
    """The pair of a row as the dataset's readers see it.

    Raises:
        DatasetError: it is not there, or its metadata are damaged.
    """
    group = _open_group(location, row.path)
    with _metadata_errors(location, row.path):
        about = group.attrs.asdict()
        low, *repeats = (
            _lazy(location, row.path, group, name) for name in low_arrays(row.realisations)
        )
        return StoredPair(
            patient=row.patient,
            anatomy=about["anatomy"],
            spacing=tuple(about["spacing"]),
            positions=tuple(about["positions"]),
            low=low,
            full=_lazy(location, row.path, group, "full"),
            repeats=tuple(repeats),
            attributes=about | {"frame_of_reference": row.frame_of_reference},
        )


def digest(location: Location, path: str) -> str:
    """Read a whole pair, shard by shard, and compute its digest from what is there.

    Raises:
        DatasetError: it is not there, or its bytes are not those that were written.
    """
    group = _open_group(location, path)
    with _metadata_errors(location, path):
        description = group.attrs.asdict()
        made = description.get(SIMULATED, {})
        lows = [_lazy(location, path, group, n) for n in low_arrays(made.get("realisations", 1))]
        full = _lazy(location, path, group, "full")
    of = {"low": _digest(lows), "full": _digest([full])}
    written = made.get(OWN_DIGEST, of["low"])
    if of["low"] != written:
        raise DatasetError(
            f"{location}/{path}: its low dose is not what was written: {_anew(path)}"
        )
    return pair_digest(description, of)


def is_whole(location: Location, row: Accepted, since: datetime | None = None) -> bool:
    """Whether all objects of a row's pair lie here as they were written; no pixel is read.

    Args:
        since: they are no older than this.
    """
    try:
        objects = _check_objects(location, row)
    except DatasetError:
        return False
    return since is None or objects[f"{row.path}/zarr.json"]["last_modified"] >= since


def check(location: Location, row: Accepted) -> None:
    """Compare shapes, and objects by number and size; no pixel is read.

    Raises:
        DatasetError: the pair is not there, or not whole.
    """
    _check_objects(location, row)
    group = _open_group(location, row.path)
    shape = (row.slices, *row.matrix)
    for name in (*low_arrays(row.realisations), "full"):
        with _metadata_errors(location, row.path):
            array = group.get(name)
        if getattr(array, "shape", None) != shape:
            raise DatasetError(f"{location}/{row.path}/{name}: no array of shape {shape}")


def _check_objects(location: Location, row: Accepted) -> Mapping[str, Any]:
    """The objects of a pair by name, if they are all there and as long as they were written."""
    path = row.path
    with storage_errors(f"{location}/{path}"):
        batches = obstore.list(location.store(), path)
        found = {entry["path"]: entry for batch in batches for entry in batch}
    if f"{path}/zarr.json" not in found:
        raise DatasetError(_absent(location, path))
    names = [f"{path}/zarr.json", *(f"{path}/{name}" for name in _object_names(row))]
    lost = [name for name in names if name not in found]
    if lost:
        raise DatasetError(
            f"{location}/{lost[0]}: not there, with {len(lost)} of {len(names)} objects: "
            f"{_anew(path)}"
        )
    size = sum(found[name]["size"] for name in names)
    if row.size is None:
        # Written before sizes were kept: the index at the end of each shard is looked at.
        _check_indices(location, row)
    elif size != row.size:
        raise DatasetError(
            f"{location}/{path}: {size} bytes, {row.size} were written: {_anew(path)}"
        )
    return found


def _object_names(row: Accepted) -> Iterator[str]:
    """Of the arrays of a pair, below it."""
    for name in (*low_arrays(row.realisations), "full"):
        yield f"{name}/zarr.json"
        for number in range(-(-row.slices // SHARD_SLICES)):
            yield f"{name}/c/{number}/0/0"


def _check_indices(location: Location, row: Accepted) -> None:
    shape = (row.slices, *row.matrix)
    for name in (*low_arrays(row.realisations), "full"):
        LazyVolume(location.child(row.path), name, shape, SHARD_SLICES).check_indices()


def _anew(path: str) -> str:
    return f"remove the folder {path} and ingest the cohort again to write it anew"


def _absent(location: Location, path: str) -> str:
    return f"{location}/{path}: the volume is not there: ingest the cohort again to write it anew"


def _open_group(location: Location, path: str) -> "zarr.Group":
    """The Zarr group of a pair, read-only.

    Raises:
        DatasetError: it is not there.
    """
    # An ingest without news opens no volume, and need not wait for Zarr.
    import zarr  # noqa: PLC0415
    from zarr.storage import ObjectStore  # noqa: PLC0415

    with _metadata_errors(location, path):
        store = ObjectStore(location.child(path).store(), read_only=True)
        try:
            return zarr.open_group(store, mode="r")
        except FileNotFoundError as error:
            raise DatasetError(_absent(location, path)) from error


@contextmanager
def _metadata_errors(location: Location, path: str) -> Iterator[None]:
    """Turn what Zarr raises on lost or damaged metadata into a DatasetError."""
    try:
        with storage_errors(f"{location}/{path}"):
            yield
    except StorageError:
        raise
    except Exception as error:  # Zarr raises anything on damaged metadata
        raise DatasetError(
            f"{location}/{path}: the volume is not there, or a zarr.json of it is damaged; "
            "`hqinet dataset verify` lists what is not whole"
        ) from error


def _lazy(location: Location, path: str, group: "zarr.Group", dose: str) -> LazyVolume:
    array = group[dose]
    expected = np.dtype(np.int16), (1, *array.shape[1:]), (SHARD_SLICES, *array.shape[1:])
    found = array.dtype, array.chunks, array.shards
    if found != expected:
        raise ValueError(f"{dose} is stored as {found}, expected {expected}")
    return LazyVolume(location.child(path), dose, array.shape, SHARD_SLICES)


def _digest(volumes: Sequence[LazyVolume]) -> str:
    """The digest of volumes of one shape, one behind the other."""
    slices, rows, columns = volumes[0].shape
    return dose_digest((len(volumes) * slices, rows, columns), _slices(volumes))


def _slices(volumes: Sequence[LazyVolume]) -> Iterator[np.ndarray]:
    """All slices, a shard in memory at a time."""
    for volume in volumes:
        for start in range(0, len(volume), SHARD_SLICES):
            yield from volume[start : start + SHARD_SLICES]
