"""Slices of a volume by number, as fast as the store and the codec give them.

Any Zarr reader can read a volume. Zarr's own reads a shard's index again each time, and returns
fill values for a missing shard. Here neighbouring slices are one request, and what is lost or
damaged is an error that names it.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import SupportsIndex

import numpy as np
import obstore
from numpy.typing import DTypeLike, NDArray

from storage.dataset import shards
from storage.errors import DatasetError
from storage.stores.location import Location, storage_errors

Index = SupportsIndex | slice


class LazyVolume:
    """One dose of a volume, int16 HU (slice, row, column), read lazily.

    Pickled, it reads in another process; several threads may read at once.
    """

    dtype = np.dtype(np.int16)
    ndim = 3

    def __init__(
        self, volume: Location, dose: str, shape: tuple[int, int, int], shard: int
    ) -> None:
        """Read the array `dose` of a volume, whose shards hold `shard` slices, each a chunk."""
        self.shape = shape
        self._volume, self._dose, self._shard = volume, dose, shard
        self._store = volume.store()
        self._indices: dict[int, NDArray[np.void]] = {}

    def __len__(self) -> int:
        """Return the number of slices."""
        return self.shape[0]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """Return the whole array, for NumPy's functions."""
        if copy is False:
            raise ValueError("slices are read from the store, which is a copy")
        return self[:].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, index: Index | tuple[Index, ...]) -> NDArray[np.int16]:
        """Return what NumPy's basic indexing of (slice, row, column) names, as int16 HU.

        Whole slices are read, all those between the first and the last that are named.

        Raises:
            IndexError: there is no such slice, row or column.
            StorageError: the store cannot be read.
            DatasetError: a shard is not there, or not as it was written.
        """
        z, *inside = index if isinstance(index, tuple) else (index,)
        named = range(len(self))[z]
        if isinstance(named, int):
            return self._run(named, named + 1)[0, *inside]
        ends = sorted((named[0], named[-1])) if named else (0, -1)
        return self._run(ends[0], ends[1] + 1)[:: named.step][:, *inside]

    def check_indices(self) -> None:
        """Look at the index that ends each shard; no slice is read.

        Raises:
            DatasetError: a shard is not there, or cut off.
        """
        for shard in range(-(-len(self) // self._shard)):
            name = self._name(shard)
            with self._errors(name):
                self._chunks(shard, name)

    def _run(self, start: int, stop: int) -> NDArray[np.int16]:
        hu = np.empty((stop - start, *self.shape[1:]), self.dtype)
        done = 0
        while done < len(hu):
            shard, first = divmod(start + done, self._shard)
            last = min(first + len(hu) - done, self._shard)
            self._read(shard, slice(first, last), hu[done : done + last - first])
            done += last - first
        return hu

    def _read(self, shard: int, inside: slice, hu: NDArray[np.int16]) -> None:
        """Decode the chunks `inside` a shard into `hu`."""
        name = self._name(shard)
        with self._errors(name):
            chunks = self._chunks(shard, name)[inside]
            begin = int(chunks["offset"].min())
            end = int((chunks["offset"] + chunks["size"]).max())
            read = memoryview(obstore.get_range(self._store, name, start=begin, end=end))
            for image, (offset, size) in zip(hu, chunks.tolist(), strict=True):
                shards.decode(read[offset - begin : offset - begin + size], image)

    def _name(self, shard: int) -> str:
        return f"{self._dose}/c/{shard}/0/0"

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Name the shard that is lost or damaged, and say what to do."""
        with storage_errors(f"{self._volume}/{name}"):
            try:
                yield
            except FileNotFoundError as error:
                raise DatasetError(
                    f"{self._volume}/{name}: not there: look whether its disk or bucket is, then "
                    "what `hqinet dataset verify` says"
                ) from error
            except (ValueError, RuntimeError, struct.error) as error:
                raise DatasetError(
                    f"{self._volume}/{name}: damaged ({error}): remove the folder {self._volume} "
                    "and ingest the cohort again to write it anew"
                ) from error

    def _chunks(self, shard: int, name: str) -> NDArray[np.void]:
        """Where the chunks of a shard lie; Zarr's sharding codec says so at the shard's end."""
        if shard not in self._indices:
            # Asked for by its size: Azure gives no range from the end.
            size = obstore.head(self._store, name)["size"]
            start = size - shards.index_size(self._shard)
            if start < 0:
                raise ValueError(f"{size} bytes are too few for an index")
            index = obstore.get_range(self._store, name, start=start, end=size)
            count = min(self._shard, self.shape[0] - shard * self._shard)
            self._indices[shard] = shards.read_index(memoryview(index), start, count)
        return self._indices[shard]
