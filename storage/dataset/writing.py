"""Volumes are written once, to an address made of their content, and verified before it is named.

The same pixels and description give the same bytes and so the same address: a conversion that was
killed is simply done again.
"""

import hashlib
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import obstore

from storage.dataset import shards
from storage.dataset.hashing import VolumeHash, pair_digest
from storage.dataset.volumes import SHARD_SLICES
from storage.errors import DatasetError
from storage.hounsfield import AIR
from storage.stores import files
from storage.stores.location import Location, storage_errors

_ADDRESS_LENGTH = 32


@dataclass(frozen=True)
class Written:
    """A pair that lies in the store, verified, but that no commit names yet.

    Attributes:
        path: below the dataset's root.
        digest: of both arrays' HU and of the description.
        pixels, low_pixels: of the full-dose and the low-dose HU alone: the same person under two
            names has the same.
        slice_fingerprints: of either dose, for the person may come again with them exchanged.
        size: bytes of the pair's objects.
    """

    path: str
    digest: str
    pixels: str
    low_pixels: str
    slice_fingerprints: tuple[str, ...]
    size: int


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
        shape: (slices, rows, columns) of each array.
        description: JSON attributes of the group; part of the digest.
        slices: for `low`, its further realisations if there are any, and `full`, the slices in
            order, int16 HU (rows, columns). Each is consumed once, one shard in memory at a time.

    Raises:
        StorageError: scratch or store cannot be written.
        DatasetError: the slices are not of that shape, or what was read back is not what was
            written. What the slices themselves raise is raised as it is.
    """
    try:
        hashers = _build(scratch, shape, description, slices)
        digests = {dose: hashers[dose].digest() for dose in ("low", "full")}
        address = pair_digest(description, digests)
        path = f"volumes/{folder_name(patient)}/{address[:_ADDRESS_LENGTH]}"
        size = _put(location, scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    fingerprints = (mark for dose in digests for mark in hashers[dose].slice_fingerprints())
    return Written(path, address, digests["full"], digests["low"], tuple(fingerprints), size)


def _build(
    folder: Path,
    shape: tuple[int, int, int],
    description: Mapping[str, Any],
    slices: Mapping[str, Iterable[np.ndarray]],
) -> dict[str, VolumeHash]:
    # An ingest without news writes no volume, and need not wait for Zarr.
    import zarr  # noqa: PLC0415
    from zarr.storage import LocalStore  # noqa: PLC0415

    # Not around the slices: what the source's disk raises is not said of this one.
    with storage_errors(str(folder)):
        group = zarr.create_group(LocalStore(folder), attributes=dict(description), zarr_format=3)
        for name in slices:
            group.create_array(
                name,
                shape=shape,
                dtype="int16",
                chunks=(1, *shape[1:]),
                shards=(SHARD_SLICES, *shape[1:]),
                compressors=shards.codecs(),
                fill_value=AIR,
                dimension_names=("z", "y", "x"),
            )
    return {name: _write_shards(folder / name, shape, of) for name, of in slices.items()}


def _write_shards(
    folder: Path, shape: tuple[int, int, int], slices: Iterable[np.ndarray]
) -> VolumeHash:
    """Write every shard, also those of air alone: one that is missing is then known to be lost."""
    hasher, count, chunks = VolumeHash(shape), 0, []
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


def _put(location: Location, folder: Path, path: str) -> int:
    """Put each object and read it back: what the store holds is what was built.

    Returns:
        the bytes of all, which lie on the disk, synced, when this returns.
    """
    store = location.store(create=True)
    objects = [file for file in folder.rglob("*") if file.is_file()]
    size = 0
    # The group's own zarr.json goes last: with it the volume is complete.
    for file in sorted(objects, key=lambda f: (-len(f.relative_to(folder).parts), str(f))):
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
        size += len(content)
    if not location.remote:
        with storage_errors(str(location)):
            files.sync_tree(Path(location.url) / path, Path(location.url))
    return size
