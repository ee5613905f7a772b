"""Where training samples come from: volumes resident in memory, or streamed by worker processes.

Both feeds give the same samples for the same numbers. Resident volumes are int16 on the device
that trains, or in main memory, and crops are cut from them there. Streaming reads windows from
the stacks (Zarr) in spawned processes, several crops a decoded window.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from hqinet.noise import noise_level
from hqinet.recipe import HU_OFFSET
from hqinet.sampling import (
    Batch,
    Draw,
    SampleOrder,
    SliceStack,
    VolumePair,
    augmentation,
    window_slices,
)

logger = logging.getLogger(__name__)

Span = tuple[int, int]
"""First sample number and how many."""
AIR_HU = -HU_OFFSET
DEVICE_SHARE = 0.4
"""Of the free device memory that volumes may take; the rest is the network's."""
MEMORY_SHARE = 0.6
"""Of the free main memory that volumes may take."""
_SLICES_AT_ONCE = 32
_READERS = 8


def open_feed(
    pairs: Sequence[VolumePair], order: SampleOrder, device: torch.device
) -> "ResidentFeed | StreamingFeed":
    """Choose the feed by the memory that is free now, and say which and why."""
    needed = resident_bytes(pairs, order.crop)
    on_device = int(free_device_memory(device) * DEVICE_SHARE)
    in_memory = int(free_memory() * MEMORY_SHARE) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    place = choose_place(needed, on_device, in_memory)
    logger.info(
        "volumes of %d patients need %.2f GB; %.2f GB of %s memory and %.2f GB of main memory "
        "may hold them: %s",
        len(pairs),
        needed / 1e9,
        on_device / 1e9,
        device.type,
        in_memory / 1e9,
        {"device": "resident on the device", "memory": "resident in main memory"}.get(
            place, "streamed by worker processes"
        ),
    )
    if place == "stream":
        return StreamingFeed(pairs, order)
    return ResidentFeed(pairs, order, device if place == "device" else torch.device("cpu"))


def choose_place(
    needed: int, on_device: int, in_memory: int
) -> Literal["device", "memory", "stream"]:
    """Return the fastest place with room for `needed` bytes."""
    if needed <= on_device:
        return "device"
    return "memory" if needed <= in_memory else "stream"


def resident_bytes(pairs: Sequence[VolumePair], crop: tuple[int, int]) -> int:
    """Return what `ResidentFeed` will hold: both doses, int16, padded to the crop."""
    rows, columns = crop
    return sum(
        4 * (p.slices + 2) * max(p.matrix[0], rows) * max(p.matrix[1], columns) for p in pairs
    )


def free_device_memory(device: torch.device) -> int:
    """Return the free bytes of a CUDA device; 0 where device and main memory are one."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def free_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes of main memory this process may still take, a container's limit heeded."""
    available = psutil.virtual_memory().available
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        statistics = dict(
            line.split() for line in (cgroup / "memory.stat").read_text().splitlines()
        )
    except (OSError, ValueError):  # no cgroup v2, or no limit ("max")
        return available
    return max(min(available, limit - used + int(statistics.get("inactive_file", 0))), 0)


class ResidentFeed:
    """Volumes as int16 tensors on one device, samples cut and gathered there."""

    def __init__(
        self, pairs: Sequence[VolumePair], order: SampleOrder, device: torch.device
    ) -> None:
        self.order = order
        with ThreadPoolExecutor(_READERS) as readers:
            loaded = readers.map(lambda pair: self._load(pair, device), pairs)
            self.low, self.full, self.noise = zip(*loaded, strict=True)

    def _load(self, pair: VolumePair, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        volumes, levels = [], []
        for stack in (pair.low, pair.full):
            volume = torch.from_numpy(np.ascontiguousarray(stack[0 : pair.slices])).to(device)
            parts = volume.split(_SLICES_AT_ONCE)
            levels.append(torch.cat([noise_level(part) for part in parts]).cpu())
            volumes.append(_padded(volume, self.order.crop))
        return volumes[0], volumes[1], torch.stack(levels, dim=1)

    def batches(self, spans: Iterable[Span]) -> Iterator[Batch]:
        """Yield one batch for each span of sample numbers."""
        rows, columns = self.order.crop
        for first, count in spans:
            draws = self.order.draw(first, count)
            low, full = (
                torch.stack(
                    [
                        # Edge slices are stored twice, so a window is always three in a row.
                        volumes[d.pair][
                            d.middle : d.middle + 3,
                            d.row : d.row + rows,
                            d.column : d.column + columns,
                        ]
                        for d in draws
                    ]
                )
                for volumes in (self.low, self.full)
            )
            noise = torch.stack([self.noise[d.pair][d.middle] for d in draws])
            yield Batch(low, full, noise, *augmentation(draws))


def _padded(volume: Tensor, crop: tuple[int, int]) -> Tensor:
    """Repeat both edge slices, and fill up with air to the crop size."""
    volume = torch.cat([volume[:1], volume, volume[-1:]])
    return _filled(volume, crop)


def _filled(volume: Tensor, crop: tuple[int, int]) -> Tensor:
    rows, columns = (max(c - s, 0) for c, s in zip(crop, volume.shape[1:], strict=True))
    return F.pad(volume, (0, columns, 0, rows), value=AIR_HU) if rows or columns else volume


class StreamingFeed:
    """Samples read from the stacks by spawned worker processes."""

    def __init__(
        self, pairs: Sequence[VolumePair], order: SampleOrder, workers: int | None = None
    ) -> None:
        self.windows = WindowReader(pairs, order)
        self.workers = max((os.cpu_count() or 2) - 1, 1) if workers is None else workers

    def batches(self, spans: Iterable[Span]) -> Iterator[Batch]:
        """Yield one batch for each span of sample numbers."""
        yield from DataLoader(
            self.windows,
            sampler=list(spans),
            batch_size=None,
            num_workers=self.workers,
            multiprocessing_context="spawn" if self.workers else None,
            prefetch_factor=4 if self.workers else None,
            pin_memory=torch.cuda.is_available(),
        )


class WindowReader(Dataset[Batch]):
    """Reads the batch of a span of sample numbers, decoding each window once."""

    def __init__(self, pairs: Sequence[VolumePair], order: SampleOrder) -> None:
        self.pairs, self.order = list(pairs), order

    def __getitem__(self, span: Span) -> Batch:
        """Return the samples of `span`, a first number and a count."""
        draws = self.order.draw(*span)
        low, full, noise = [], [], []
        windows: tuple[Tensor, Tensor, Tensor] | None = None
        for i, draw in enumerate(draws):
            before = draws[i - 1] if i else None
            if windows is None or before is None or not _same_window(before, draw):
                windows = self._read(draw)
            crop = (
                slice(None),
                slice(draw.row, draw.row + self.order.crop[0]),
                slice(draw.column, draw.column + self.order.crop[1]),
            )
            low.append(windows[0][crop])
            full.append(windows[1][crop])
            noise.append(windows[2])
        batch = (torch.stack(parts) for parts in (low, full, noise))
        return Batch(*batch, *augmentation(draws))

    def _read(self, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        pair = self.pairs[draw.pair]
        low, full = (
            torch.from_numpy(read_window(stack, draw.middle)) for stack in (pair.low, pair.full)
        )
        noise = torch.cat([noise_level(low[1:2]), noise_level(full[1:2])])
        return _filled(low, self.order.crop), _filled(full, self.order.crop), noise


def _same_window(one: Draw, other: Draw) -> bool:
    return (one.pair, one.middle) == (other.pair, other.middle)


def read_window(stack: SliceStack, middle: int) -> NDArray[np.int16]:
    """Return the three slices around `middle`, (3, rows, columns) int16 HU."""
    before, _, after = window_slices(middle, stack.shape[0])
    read = np.asarray(stack[before : after + 1])
    return read[[0, middle - before, -1]]
