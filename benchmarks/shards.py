"""Claim: our own reader and packer of shards are as fast as any library, and say what is lost.

    pip install zarrs tensorstore
    python benchmarks/shards.py [--slices 200] [--seconds 5]

On one volume of 512 x 512 slices, in one run, one thread each, as a worker has: slices a second of
- writing it in whole shards: the project, Zarr, Zarr with the `zarrs` pipeline, tensorstore; the
  limit is the codec and the checksum alone;
- reading three neighbouring slices at random places, as training does, and a shard of slices in a
  row, as evaluation does; the limit is to decode them from memory.
All write the same bytes. At the end: what each of them says of a lost shard and of a flipped bit.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import zarr
import zarrs  # noqa: F401 - its pipeline is named below

from storage.dataset import shards
from storage.dataset.lazy_volume import LazyVolume
from storage.dataset.volumes import SHARD_SLICES
from storage.hounsfield import AIR
from storage.stores.location import Location

PIXELS = 512
SLAB = 3
ZARRS = {
    "codec_pipeline.path": "zarrs.ZarrsCodecPipeline",
    # Off by default: a flipped bit would be read.
    "codec_pipeline.validate_checksums": True,
    "threading.max_workers": 1,
}
ONE_THREAD = {"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 1}}


def main() -> None:
    """Make a volume, write and read it with each, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5)
    arguments = parser.parse_args()
    hu = make_volume(arguments.slices)
    zarr.config.set({"array.write_empty_chunks": True})
    with tempfile.TemporaryDirectory(prefix="hqinet-shards-") as name:
        folder = Path(name)
        print(f"{len(hu)} slices of {PIXELS} x {PIXELS}, one thread each")
        measure_writing(folder, hu, arguments.seconds)
        readers = open_all(folder, hu)
        measure_reading("slab", readers, hu, SLAB, arguments.seconds)
        measure_reading("shard", readers, hu, SHARD_SLICES, arguments.seconds)
        damage(folder, len(hu))


def make_volume(slices: int) -> np.ndarray:
    """A body with the noise of a clinical image, int16 HU."""
    y, x = np.mgrid[-1 : 1 : PIXELS * 1j, -1 : 1 : PIXELS * 1j]
    body = np.where((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1, 40.0, -1000.0)
    noise = np.random.default_rng(0).normal(0, 12, (slices, PIXELS, PIXELS))
    return (body + noise).round().astype(np.int16)


def create(folder: Path, hu: np.ndarray) -> zarr.Array:
    """The array of the project's layout, by Zarr."""
    return zarr.create_array(
        str(folder),
        shape=hu.shape,
        dtype="int16",
        chunks=(1, PIXELS, PIXELS),
        shards=(SHARD_SLICES, PIXELS, PIXELS),
        compressors=shards.codecs(),
        fill_value=AIR,
        overwrite=True,
    )


def write_ours(folder: Path, hu: np.ndarray) -> None:
    """As `storage.dataset.writing` does."""
    create(folder, hu)
    for number, start in enumerate(range(0, len(hu), SHARD_SLICES)):
        chunks = [shards.encode(image) for image in hu[start : start + SHARD_SLICES]]
        file = folder / "c" / str(number) / "0" / "0"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(shards.pack(chunks, SHARD_SLICES))


def write_zarr(folder: Path, hu: np.ndarray) -> None:
    """As a script would: a shard at a time."""
    array = create(folder, hu)
    for start in range(0, len(hu), SHARD_SLICES):
        array[start : start + SHARD_SLICES] = hu[start : start + SHARD_SLICES]


def write_zarrs(folder: Path, hu: np.ndarray) -> None:
    """The same through the pipeline in Rust."""
    with zarr.config.set(ZARRS):
        write_zarr(folder, hu)


def write_tensorstore(folder: Path, hu: np.ndarray) -> None:
    """The same array, opened by tensorstore."""
    create(folder, hu)
    array = open_tensorstore(folder, write=True)
    for start in range(0, len(hu), SHARD_SLICES):
        array[start : start + SHARD_SLICES].write(hu[start : start + SHARD_SLICES]).result()


def open_tensorstore(folder: Path, *, write: bool = False) -> Any:  # noqa: ANN401 - untyped there
    """An array without a cache, in one thread."""
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
    spec["store_data_equal_to_fill_value"] = True
    context = tensorstore.Context(ONE_THREAD)
    return tensorstore.open(spec, open=True, read=True, write=write, context=context).result()


WRITERS: dict[str, Callable[[Path, np.ndarray], None]] = {
    "project": write_ours,
    "zarr": write_zarr,
    "zarrs": write_zarrs,
    "tensorstore": write_tensorstore,
}


def measure_writing(folder: Path, hu: np.ndarray, seconds: float) -> None:
    """Print slices per second, and that the bytes are the same."""
    rates = {"limit": len(hu) * repeated(lambda: list(map(shards.encode, hu)), seconds)}
    for name, write in WRITERS.items():
        rates[name] = len(hu) * repeated(lambda n=name, w=write: w(folder / n, hu), seconds)
    show("write", rates)
    shard = Path("c", "0", "0", "0")
    ours = (folder / "project" / shard).read_bytes()
    same = [name for name in WRITERS if (folder / name / shard).read_bytes() == ours]
    print(f"same bytes as the project: {', '.join(same)}")


def open_all(folder: Path, hu: np.ndarray) -> dict[str, Any]:
    """Readers of the project's volume."""
    path = folder / "project"
    readers: dict[str, Any] = {
        "project": LazyVolume(Location(folder), "project", hu.shape, SHARD_SLICES),
        "zarr": zarr.open_array(str(path), mode="r"),
        "tensorstore": open_tensorstore(path),
    }
    with zarr.config.set(ZARRS):
        readers["zarrs"] = zarr.open_array(str(path), mode="r")
    return readers


def measure_reading(
    what: str, readers: dict[str, Any], hu: np.ndarray, run: int, seconds: float
) -> None:
    """Print slices per second, read in runs of so many."""
    places = np.random.default_rng(1).integers(0, len(hu) - run + 1, 64)
    if run == SHARD_SLICES:
        places = places // run * run
    chunks = [memoryview(shards.encode(image)) for image in hu[:run]]
    image = np.empty((PIXELS, PIXELS), np.int16)

    def decode() -> None:
        for _ in places:
            for chunk in chunks:
                shards.decode(chunk, image)

    count = len(places) * run
    rates = {"limit": count * repeated(decode, seconds)}
    for name, reader in readers.items():

        def read(reader: Any = reader) -> None:  # noqa: ANN401
            for place in places:
                np.asarray(reader[place : place + run])

        assert (np.asarray(reader[5 : 5 + run]) == hu[5 : 5 + run]).all()
        rates[name] = count * repeated(read, seconds)
    show(what, rates)


def damage(folder: Path, slices: int) -> None:
    """Print what each reader makes of a shard that is lost, and of one with a flipped bit."""
    shard = folder / "project" / "c" / "1" / "0" / "0"
    content = shard.read_bytes()
    flipped = bytearray(content)
    flipped[1000] ^= 1
    for what, spoil in (("lost", shard.unlink), ("flipped", lambda: shard.write_bytes(flipped))):
        spoil()
        for name, reader in open_all(folder, np.empty((slices, PIXELS, PIXELS))).items():
            try:
                values = np.asarray(reader[SHARD_SLICES : SHARD_SLICES + 1])
                said = f"reads {values.min()} to {values.max()} HU, and says nothing"
            except Exception as error:  # noqa: BLE001 - each has errors of its own
                said = f"{type(error).__name__}: {' '.join(str(error).split())[-120:]}"
            print(f"{what:8s} {name:12s} {said}")


def repeated(work: Callable[[], object], seconds: float) -> float:
    """How often a second: the best of repeats within so many seconds, two at least."""
    best, spent, rounds = float("inf"), 0.0, 0
    while spent < seconds or rounds < 2:
        start = time.perf_counter()
        work()
        took = time.perf_counter() - start
        best, spent, rounds = min(best, took), spent + took, rounds + 1
    return 1 / best


def show(what: str, rates: dict[str, float]) -> None:
    """A line for each."""
    for name, rate in rates.items():
        print(
            f"{what:6s} {name:12s} {rate:8.0f} slices/s   {rate / rates['limit']:.2f} of the limit"
        )


if __name__ == "__main__":
    main()
