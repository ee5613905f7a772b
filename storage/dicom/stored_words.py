"""What the files of a series store, kept beside its HU: a compressed slice is decoded once."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage.dicom.pixels import HuDecoder
from storage.dicom.series import Series


class StoredWords:
    """The stored words of a series, all bits, in a file that is mapped into memory.

    Filled by `decoded`; yields (rows, columns) in the type of each file, in the order of space.
    """

    def __init__(self, file: Path, series: Series) -> None:
        self._shape = series.rows, series.columns
        widest = max(np.dtype(item.stored.dtype).itemsize for item in series.slices)
        size = len(series.slices), series.rows * series.columns * widest
        self._bytes = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=size)
        self._types: list[np.dtype] = []

    def append(self, words: np.ndarray) -> None:
        """Keep those of the next slice."""
        self._bytes[len(self._types), : words.nbytes] = (
            np.ascontiguousarray(words).view(np.uint8).ravel()
        )
        self._types.append(words.dtype)

    def __iter__(self) -> Iterator[NDArray[np.integer]]:
        count = self._shape[0] * self._shape[1]
        for row, kind in zip(self._bytes, self._types, strict=True):
            yield row[: count * kind.itemsize].view(kind).reshape(self._shape)


def decoded(root: Path, series: Series, folder: Path) -> tuple[NDArray[np.int16], StoredWords]:
    """A series in HU, (slices, rows, columns), and what it stores, each in a file in a folder.

    Raises:
        Refusal, OSError, MemoryError: as HuDecoder does.
    """
    shape = (len(series.slices), series.rows, series.columns)
    volume = np.lib.format.open_memmap(folder / "low.npy", mode="w+", dtype=np.int16, shape=shape)
    words = StoredWords(folder / "words.npy", series)
    for index, hu in enumerate(HuDecoder(root, series, words.append)):
        volume[index] = hu
    return volume, words
