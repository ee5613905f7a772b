"""Training samples a second: both feeds, two plain readers, and the bandwidth of memory.

`python benchmarks/feed.py [--patients 2] [--slices 40] [--workers 2] [--seconds 5]`

Writes a cohort of synthetic 512x512 patients twice into a temporary folder, as the project's Zarr
volumes and as uncompressed DICOM, and draws 64x64 samples of `fast` from it. The peers are torch
Datasets as they are usually written, under as many workers: one reads the same Zarr a sample at a
time, one decodes the DICOM files of a sample at a time. The limit is the memory bandwidth measured
by copying, over the bytes of a sample. What streaming makes depends on how many samples the recipe
cuts from a slice that is read: 32 in `fast`; it is measured with 4 and 1, too. Last, the share of a
training step spent waiting.
"""

import argparse
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pydicom
import torch
import zarr
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hqinet.devices import synchronise
from hqinet.networks.hqinet import build
from hqinet.samples.batch import Batch, prepare
from hqinet.samples.feed import ResidentFeed, StreamingFeed
from hqinet.samples.order import SampleOrder
from hqinet.samples.pairs import VolumePair
from hqinet.training.recipe import Recipe, load_recipe
from storage.dataset.lazy_volume import LazyVolume
from storage.dataset.volumes import SHARD_SLICES
from storage.dataset.writing import write
from storage.dicom.writing import SeriesIdentity, write_series
from storage.stores.location import Location

SIDE = 512
DOSES = {"low": "Low Dose Images", "full": "Full Dose Images"}


def volumes(patients: int, slices: int) -> dict[str, dict[str, np.ndarray]]:
    """Smooth bodies with noise, which compress about as CT does."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    body = np.where(x**2 + (1.4 * y) ** 2 < 0.7, 40, -1000)
    made = {}
    for i in range(patients):
        random = np.random.default_rng(i)
        full = body + random.normal(0, 10, (slices, SIDE, SIDE)) * (body > -1000)
        low = full + random.normal(0, 30, full.shape) * (body > -1000)
        made[f"P{i}"] = {"low": low.round().astype(np.int16), "full": full.round().astype(np.int16)}
    return made


def as_zarr(
    made: dict[str, dict[str, np.ndarray]], root: Path
) -> tuple[list[VolumePair], list[zarr.Group]]:
    """Write the cohort as the project does; return it as the project and as Zarr read it."""
    location = Location(str(root / "zarr"))
    pairs, groups = [], []
    for patient, stacks in made.items():
        shape = stacks["full"].shape
        description = {
            "anatomy": "chest",
            "spacing": [3.0, 0.7, 0.7],
            "positions": list(range(shape[0])),
        }
        written = write(location, root / "scratch", patient, shape, description, stacks)
        place = location.child(written.path)
        low, full = (LazyVolume(place, dose, shape, SHARD_SLICES) for dose in ("low", "full"))
        pairs.append(VolumePair(patient, "chest", low, full))
        groups.append(zarr.open_group(str(place), mode="r"))
    return pairs, groups


def as_dicom(made: dict[str, dict[str, np.ndarray]], root: Path) -> list[dict[str, list[Path]]]:
    """Write the cohort as files; return each patient's, in slice order, for both doses."""
    patients = []
    for patient, stacks in made.items():
        files = {}
        for dose, description in DOSES.items():
            identity = SeriesIdentity("bench", patient, description, "CHEST", "SIEMENS")
            folder = write_series(root / "dicom", stacks[dose], (3.0, 0.7, 0.7), identity)
            headers = [
                (float(pydicom.dcmread(f, stop_before_pixels=True).SliceLocation), f)
                for f in folder.iterdir()
            ]
            files[dose] = [file for _, file in sorted(headers)]
        patients.append(files)
    return patients


class PlainZarr(Dataset[Tensor]):
    """A sample at a time: three low-dose slices and one full-dose slice, cropped after reading."""

    def __init__(self, groups: list[zarr.Group], order: SampleOrder) -> None:
        self.stacks = [{dose: group[dose] for dose in DOSES} for group in groups]
        self.order = order

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, number: int) -> Tensor:
        (draw,) = self.order.draw(number, 1)
        rows, columns = self.order.crop
        inside = (slice(draw.row, draw.row + rows), slice(draw.column, draw.column + columns))
        slices = [draw.middle + i for i in (-1, 0, 1)]
        slices = [min(max(z, 0), self.order.counts[draw.pair] - 1) for z in slices]
        stacks = self.stacks[draw.pair]
        images = [self.read(stacks["low"], z) for z in slices]
        images.append(self.read(stacks["full"], draw.middle))
        return torch.from_numpy(np.stack([image[inside] for image in images]))

    @staticmethod
    def read(stack: zarr.Array, z: int) -> np.ndarray:
        """Return slice `z` in HU."""
        return stack[z : z + 1][0]


class PlainDicom(PlainZarr):
    """The same from DICOM files, each decoded for each sample."""

    def __init__(self, files: list[dict[str, list[Path]]], order: SampleOrder) -> None:
        self.stacks = files
        self.order = order

    @staticmethod
    def read(stack: list[Path], z: int) -> np.ndarray:
        """Return slice `z` in HU."""
        image = pydicom.dcmread(stack[z])
        return image.pixel_array.astype(np.int16) + np.int16(image.RescaleIntercept)


def other_order(pairs: list[VolumePair], patches: int) -> SampleOrder:
    """The order of `fast`, but for the number of patches cut from a slice."""
    recipe = load_recipe("fast", f"sampling.patches_per_slice = {patches}")
    return SampleOrder(recipe.sampling, pairs, 0)


def plain_loader(dataset: Dataset[Tensor], batch: int, workers: int) -> Iterable[Tensor]:
    return DataLoader(
        dataset, batch, num_workers=workers, multiprocessing_context="spawn" if workers else None
    )


def rate(batches: Iterable[Batch | Tensor], batch: int, seconds: float) -> float:
    """Samples a second, the start of workers and the second after it left out."""
    iterator = iter(batches)
    next(iterator)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < 1:
        next(iterator)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        next(iterator)
        done += batch
    return done / (time.perf_counter() - start)


def memory_bandwidth() -> float:
    """Bytes a second of reading and writing 256 MB, the best of five."""
    source = torch.ones(2**26, dtype=torch.float32)
    target = torch.empty_like(source)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(times)


def waiting_share(
    feed: ResidentFeed | StreamingFeed, recipe: Recipe, device: torch.device
) -> float:
    """Share of training steps spent fetching and preparing the batch, once windows are held."""
    network = build(recipe.model, 0).to(device, memory_format=torch.channels_last)
    batch, waited = recipe.sampling.batch, 0.0
    batches = feed.batches((i * batch, batch) for i in range(10**6))
    for _ in range(feed.order.windows_held // batch):
        next(batches)
    start = time.perf_counter()
    for _ in range(40):
        before = time.perf_counter()
        windows, full, noise = prepare(next(batches), device)
        synchronise(device)
        waited += time.perf_counter() - before
        (network(windows, noise) - full).abs().mean().backward()
        synchronise(device)
    return waited / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=2)
    parser.add_argument("--slices", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device, workers = torch.device(arguments.device), arguments.workers
    recipe = load_recipe("fast", f"model.width = {arguments.width}", "sampling.patch = 64")
    batch = recipe.sampling.batch
    spans = [(i * batch, batch) for i in range(100_000)]
    with tempfile.TemporaryDirectory() as folder:
        made = volumes(arguments.patients, arguments.slices)
        (pairs, groups), files = as_zarr(made, Path(folder)), as_dicom(made, Path(folder))
        order = SampleOrder(recipe.sampling, pairs, 0)
        resident, streamed = ResidentFeed(pairs, order, device), StreamingFeed(pairs, order)
        rates = {
            "resident": rate(resident.batches(spans), batch, arguments.seconds),
            "streamed": rate(streamed.batches(spans), batch, arguments.seconds),
            **{
                f"  {patches} a slice": rate(
                    StreamingFeed(pairs, other_order(pairs, patches)).batches(spans),
                    batch,
                    arguments.seconds,
                )
                for patches in (4, 1)
            },
            "plain Zarr": rate(
                plain_loader(PlainZarr(groups, order), batch, workers), batch, arguments.seconds
            ),
            "plain DICOM": rate(
                plain_loader(PlainDicom(files, order), batch, workers), batch, arguments.seconds
            ),
        }
        waiting = [waiting_share(feed, recipe, device) for feed in (resident, streamed)]
    # Two int16 windows read and written once.
    rates["memory bandwidth"] = memory_bandwidth() / (2 * 2 * 3 * 64 * 64 * 2)
    print(f"{device}, {workers} workers, batches of {batch} samples of 64x64")
    for name, value in rates.items():
        print(f"  {name:18} {value:10.0f} samples/s  {value / rates['plain DICOM']:8.2f} x DICOM")
    print(
        f"  waiting for the resident feed {waiting[0]:.2%} of a step at width {arguments.width}, "
        f"for the streamed one {waiting[1]:.2%}"
    )


if __name__ == "__main__":
    main()
