"""The bytes of a shard: slices in Zarr's sharding codec, each a chunk of Blosc and a CRC32C.

Zarr writes and reads the same bytes through a chain of asynchronous steps a chunk, which costs
several times the codec; and what it writes it first gathers, so that a slice has left the cache
when it is compressed.
"""

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np
from numcodecs import Blosc
from numpy.typing import NDArray

if TYPE_CHECKING:
    from zarr.abc.codec import BytesBytesCodec

_NAME, _LEVEL = "zstd", 3
_BLOSC = Blosc(_NAME, clevel=_LEVEL, shuffle=Blosc.BITSHUFFLE)
_BLOSC_HEADER = struct.Struct("<4xIII")
"""Decoded size, block size, encoded size."""
_CHECKSUM = 4
_ENTRY = np.dtype([("offset", "<u8"), ("size", "<u8")])
_ABSENT = np.iinfo(np.uint64).max


def codecs() -> "list[BytesBytesCodec]":
    """A chunk's codecs, as an array's metadata name them."""
    # Whoever reads needs no Zarr, which takes a while to import.
    from zarr.codecs import BloscCodec, Crc32cCodec  # noqa: PLC0415

    return [BloscCodec(cname=_NAME, clevel=_LEVEL, shuffle="bitshuffle"), Crc32cCodec()]


def encode(image: NDArray[np.int16]) -> bytes:
    """The chunk of a slice, int16 (rows, columns)."""
    return _with_checksum(_BLOSC.encode(np.ascontiguousarray(image, "<i2")))


def decode(chunk: memoryview, image: NDArray[np.int16]) -> None:
    """Decode a chunk into `image`, int16 (rows, columns).

    Raises:
        ValueError, RuntimeError, struct.error: it is damaged, or of another size.
    """
    encoded = _checked(chunk)
    decoded_size, _, encoded_size = _BLOSC_HEADER.unpack_from(encoded)
    if (decoded_size, encoded_size) != (image.nbytes, len(encoded)):
        raise ValueError(f"a chunk of {decoded_size} bytes, expected {image.nbytes}")
    _BLOSC.decode(encoded, out=image)


def pack(chunks: Sequence[bytes], capacity: int) -> bytes:
    """The shard of these chunks, `capacity` at most; those beyond the array's end are absent."""
    index = np.full(capacity, _ABSENT, _ENTRY)
    sizes = [len(chunk) for chunk in chunks]
    index["size"][: len(chunks)] = sizes
    index["offset"][: len(chunks)] = np.cumsum([0, *sizes[:-1]])
    return b"".join((*chunks, _with_checksum(index.tobytes())))


def index_size(capacity: int) -> int:
    """Bytes of the index that ends a shard."""
    return capacity * _ENTRY.itemsize + _CHECKSUM


def read_index(content: memoryview, start: int, count: int) -> NDArray[np.void]:
    """Where a shard's first `count` chunks lie: `offset` and `size` in bytes.

    Args:
        content: the index.
        start: the byte of the shard at which it lies, behind all chunks.

    Raises:
        ValueError: it is damaged.
    """
    chunks = np.frombuffer(_checked(content), _ENTRY)[:count]
    if (chunks["offset"] > start).any() or (chunks["size"] > start - chunks["offset"]).any():
        raise ValueError("its index names chunks that are not in it")
    return chunks


def _with_checksum(body: bytes) -> bytes:
    return body + google_crc32c.value(body).to_bytes(_CHECKSUM, "little")


def _checked(content: memoryview) -> bytes:
    """Return what stands before the CRC32C at the end; ValueError if it is of other bytes."""
    body, stored = bytes(content[:-_CHECKSUM]), int.from_bytes(content[-_CHECKSUM:], "little")
    if not body or google_crc32c.value(body) != stored:
        raise ValueError("its checksum is of other bytes")
    return body
