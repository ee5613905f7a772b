"""Volumes of HU as Zarr: written once, addressed by their content, verified before they are named.

A pair lies at `volumes/<patient>/<digest>/`: a Zarr group whose attributes describe it, with the
arrays `low` and `full`, both int16 HU (slice, row, column). The same pixels and description give
the same bytes and so the same address: a conversion that was killed is simply done again.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import zarr
from zarr.storage import LocalStore, ObjectStore

from storage.dataset import shards
from storage.dataset.lazy_volume import LazyVolume
from storage.errors import DatasetError, StorageError
from storage.stores.location import Location, storage_errors

FORMAT = 1
AIR = -1024
DOSES = ("low", "full")
SHARD_SLICES = 40
# Slice digests kept of each volume: enough to find one that is a third part of another.
SKETCH = 16

_ADDRESS_LENGTH = 32


@dataclass(frozen=True)
class StoredPair:
    """One pair of the dataset, read lazily; picklable, so that other processes can read it.

    Attributes:
        spacing: (z, y, x) in mm; z is the slice increment, not the slice thickness.
        positions: mm along the slice normal, ascending, one for each slice.
    """

    patient: str
    anatomy: str
    spacing: tuple[float, float, float]
    positions: tuple[float, ...]
    low: LazyVolume
    full: LazyVolume


@dataclass(frozen=True)
class Written:
    """A pair that lies in the store, verified, but that no commit names yet.

    Attributes:
        path: below the dataset's root.
        digest: of both arrays' HU and of the description.
        pixels, low_pixels: of the full-dose and the low-dose HU alone: the same person under two
            names has the same.
        sketch: the smallest digests of the slices of each dose, to find a partial copy.
    """

    path: str
    digest: str
    pixels: str
    low_pixels: str
    sketch: str


def is_flat(image: np.ndarray) -> bool:
    """Whether all pixels have one value."""
    # A few pixels tell it of nearly every image.
    sample = image.ravel()[::997]
    return bool(sample.min() == sample.max()) and bool(image.min() == image.max())


class Hasher:
    """SHA-256 over the HU of a volume, slice by slice, and a sketch of its slices."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._shape = shape
        self._whole = hashlib.sha256(repr(shape).encode())
        self._slices: set[str] = set()

    def add(self, image: np.ndarray) -> None:
        """Take in a slice, int16 HU (rows, columns)."""
        digest = hashlib.sha256(np.ascontiguousarray(image, dtype="<i2")).digest()
        self._whole.update(digest)
        # An image of one value, air beyond the body, says nothing about the person.
        if not is_flat(image):
            self._slices.add(f"{digest.hex()[:16]}")

    def digest(self) -> str:
        """The volume's digest."""
        return self._whole.hexdigest()

    def sketch(self) -> str:
        """The `SKETCH` smallest slice digests: two volumes that overlap share some of them."""
        return " ".join(sorted(self._slices)[:SKETCH])


def folder_name(patient: str) -> str:
    """A name for the patient's folder that is safe in a path and an object key."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", patient):
        return patient
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", patient)[:40].strip("_")
    return f"{plain or 'patient'}-{hashlib.sha256(patient.encode()).hexdigest()[:12]}"


def write(
    location: Location,
    scratch: Path,
    patient: str,
    shape: tuple[int, int, int],
    description: Mapping[str, Any],
    slices: Mapping[str, Iterable[np.ndarray]],
) -> Written:
    """Build a pair in `scratch`, put it to its address, read it back, and compare.

    Args:
        scratch: an empty folder on a local disk, for this volume alone; gone afterwards.
        shape: (slices, rows, columns) of both arrays.
        description: JSON attributes of the group; part of the digest.
        slices: for `low` and `full`, the slices in order, int16 HU (rows, columns). Each is
            consumed once, one shard in memory at a time.

    Raises:
        StorageError: scratch or store cannot be written.
        DatasetError: the slices are not of that shape, or what was read back is not what was
            written. What the slices themselves raise is raised as it is.
    """
    try:
        hashers = _build(scratch, shape, description, slices)
        digests = {dose: hashers[dose].digest() for dose in DOSES}
        address = _digest(description, digests)
        path = f"volumes/{folder_name(patient)}/{address[:_ADDRESS_LENGTH]}"
        _put(location, scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    # Of both: the person may come again with the doses exchanged.
    sketch = " ".join(hashers[dose].sketch() for dose in DOSES)
    return Written(path, address, digests["full"], digests["low"], sketch)


def _build(
    folder: Path,
    shape: tuple[int, int, int],
    description: Mapping[str, Any],
    slices: Mapping[str, Iterable[np.ndarray]],
) -> dict[str, Hasher]:
    # Not around the slices: what the source's disk raises is not said of this one.
    with storage_errors(str(folder)):
        group = zarr.create_group(LocalStore(folder), attributes=dict(description), zarr_format=3)
        for dose in DOSES:
            group.create_array(
                dose,
                shape=shape,
                dtype="int16",
                chunks=(1, *shape[1:]),
                shards=(SHARD_SLICES, *shape[1:]),
                compressors=shards.CODECS,
                fill_value=AIR,
                dimension_names=("z", "y", "x"),
            )
    return {dose: _write_shards(folder / dose, shape, slices[dose]) for dose in DOSES}


def _write_shards(
    folder: Path, shape: tuple[int, int, int], slices: Iterable[np.ndarray]
) -> Hasher:
    """Write every shard, those of air too, so that one which is lost can be told from them."""
    hasher, count, chunks = Hasher(shape), 0, []
    for count, image in enumerate(slices, 1):
        if count > shape[0]:
            break
        if (image.shape, image.dtype) != (shape[1:], np.int16):
            raise DatasetError(f"a slice is {image.dtype} {image.shape}, not int16 {shape[1:]}")
        # Digested and compressed one by one, while a slice is in the processor's cache.
        hasher.add(image)
        chunks.append(shards.encode(image))
        if len(chunks) == SHARD_SLICES or count == shape[0]:
            _write_shard(folder / "c" / str((count - 1) // SHARD_SLICES), chunks)
            chunks = []
    if count != shape[0]:
        raise DatasetError(f"{count} slices of the {folder.name}-dose series came, not {shape[0]}")
    return hasher


def _write_shard(folder: Path, chunks: Sequence[bytes]) -> None:
    with storage_errors(str(folder)):
        (folder / "0").mkdir(parents=True)
        (folder / "0" / "0").write_bytes(shards.pack(chunks, SHARD_SLICES))


def _put(location: Location, folder: Path, path: str) -> None:
    """Put each object and read it back: what the store holds is what was built."""
    store = location.store(create=True)
    files = [file for file in folder.rglob("*") if file.is_file()]
    # The group's own zarr.json goes last: with it the volume is complete.
    for file in sorted(files, key=lambda f: (-len(f.relative_to(folder).parts), str(f))):
        name = f"{path}/{file.relative_to(folder).as_posix()}"
        with storage_errors(str(folder)):
            content = file.read_bytes()
        with storage_errors(str(location)):
            obstore.put(store, name, content)
            stored = obstore.get(store, name).bytes()
        if stored != content:
            raise DatasetError(
                f"{location}/{name} reads back otherwise than it was written: check the disk or "
                "object store, then ingest again"
            )


def open_group(location: Location, path: str) -> zarr.Group:
    """The Zarr group of a pair, read-only.

    Raises:
        DatasetError: it is not there.
    """
    if not is_complete(location, path):
        raise DatasetError(
            f"{location}/{path}: the volume is not there: ingest the cohort again to write it anew"
        )
    with metadata_errors(location, path):
        store = ObjectStore(location.child(path).store(), read_only=True)
        return zarr.open_group(store, mode="r")


@contextmanager
def metadata_errors(location: Location, path: str) -> Iterator[None]:
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


def is_complete(location: Location, path: str, since: datetime | None = None) -> bool:
    """Whether a pair lies here, written to its end (after `since`); nothing of it is read."""
    with storage_errors(str(location)):
        try:
            found = location.store().head(f"{path}/zarr.json")
        except FileNotFoundError:
            return False
    return since is None or found["last_modified"] >= since


def check(location: Location, path: str, shape: tuple[int, int, int]) -> None:
    """Compare shapes and count objects; no pixel is read.

    Raises:
        DatasetError: the pair is not there, or not whole.
    """
    group = open_group(location, path)
    with storage_errors(f"{location}/{path}"):
        found = {e["path"] for batch in obstore.list(location.store(), path) for e in batch}
        for dose in DOSES:
            with metadata_errors(location, path):
                array = group.get(dose)
            if not isinstance(array, zarr.Array) or array.shape != shape:
                raise DatasetError(f"{location}/{path}/{dose}: no array of shape {shape}")
            expected = [f"{path}/{dose}/c/{i}/0/0" for i in range(-(-shape[0] // SHARD_SLICES))]
            lost = [shard for shard in expected if shard not in found]
            if lost:
                raise DatasetError(
                    f"{location}/{lost[0]}: not there, with {len(lost)} of {len(expected)} shards: "
                    f"remove the folder {path} and ingest the cohort again to write it anew"
                )


def digest(location: Location, path: str) -> str:
    """Read a whole pair, shard by shard, and compute its digest from what is there.

    Raises:
        DatasetError: it is not there, or its bytes are not those that were written.
    """
    group = open_group(location, path)
    with metadata_errors(location, path):
        description = group.attrs.asdict()
        slices = {dose: _slices(location, path, group, dose) for dose in DOSES}
    return _digest(description, {dose: _slices_digest(slices[dose]) for dose in DOSES})


def _slices_digest(slices: LazyVolume) -> str:
    hasher = Hasher(slices.shape)
    for start in range(0, slices.shape[0], SHARD_SLICES):
        for image in slices[start : start + SHARD_SLICES]:
            hasher.add(image)
    return hasher.digest()


def _slices(location: Location, path: str, group: zarr.Group, dose: str) -> LazyVolume:
    array = group[dose]
    expected = np.dtype(np.int16), (1, *array.shape[1:]), (SHARD_SLICES, *array.shape[1:])
    found = array.dtype, array.chunks, array.shards
    if found != expected:
        raise ValueError(f"{dose} is stored as {found}, expected {expected}")
    return LazyVolume(location.child(path), dose, array.shape, SHARD_SLICES)


def _digest(description: Mapping[str, Any], arrays: Mapping[str, str]) -> str:
    content = {"format": FORMAT, "description": dict(description), "arrays": dict(arrays)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def open_volume(location: Location, path: str, patient: str) -> StoredPair:
    """The pair at `path` as the dataset's readers see it."""
    group = open_group(location, path)
    with metadata_errors(location, path):
        about = group.attrs.asdict()
        return StoredPair(
            patient=patient,
            anatomy=about["anatomy"],
            spacing=tuple(about["spacing"]),
            positions=tuple(about["positions"]),
            low=_slices(location, path, group, "low"),
            full=_slices(location, path, group, "full"),
        )
