"""Where training samples come from: volumes resident in memory, or streamed by worker processes.

Both feeds give the same samples for the same numbers. Resident volumes are int16 on the device
that trains, or in main memory, and crops are cut from them there. Streaming reads windows from
the stacks (Zarr) in spawned processes, several crops a decoded window.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hqinet.errors import HqinetError
from hqinet.intensity import AIR_HU
from hqinet.noise import noise_level
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
DEVICE_SHARE = 0.4
"""Of the free device memory that volumes may take; the rest is the network's."""
MEMORY_SHARE = 0.6
"""Of the free main memory that volumes may take."""
_SLICES_AT_ONCE = 32
_READERS = 8
_BATCHES_AHEAD = 4
"""For each worker process."""


class FeedError(HqinetError):
    """Samples cannot be read just now; the message is one line. Another try may do."""


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
        self.pairs, self.order = pairs, order
        self.workers = workers or max((os.cpu_count() or 2) - 1, 1)

    def batches(self, spans: Iterable[Span]) -> Iterator[Batch]:
        """Yield one batch for each span of sample numbers, reading some ahead."""
        spans = iter(spans)
        # Not torch's DataLoader: stopped early, its workers abort and the abort is raised in the
        # main thread, wherever that is, which may be while a checkpoint is written.
        pool = ProcessPoolExecutor(
            self.workers,
            multiprocessing.get_context("spawn"),
            _start_reader,
            (self.pairs, self.order),
        )
        with pool:
            try:
                ahead = deque(
                    pool.submit(_read_here, span)
                    for span in islice(spans, _BATCHES_AHEAD * self.workers)
                )
                while ahead:
                    yield Batch(*map(torch.from_numpy, ahead.popleft().result()))
                    ahead.extend(pool.submit(_read_here, span) for span in islice(spans, 1))
            except BrokenProcessPool as error:
                raise FeedError(
                    "a process that reads samples was killed, most likely for memory; "
                    "the last checkpoint continues the run"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)


_here: list["WindowReader"] = []
"""What a worker process reads with."""


def _start_reader(pairs: Sequence[VolumePair], order: SampleOrder) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _here.append(WindowReader(pairs, order))


def _leave_with_parent() -> None:
    """End this process when its parent is gone: a killed parent cannot tell it to."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _read_here(span: Span) -> list[NDArray[Any]]:
    """Return a batch as arrays: tensors would travel through shared memory files."""
    return [part.numpy() for part in _here[0].read(span)]


class WindowReader:
    """Reads samples from the stacks, decoding a window once for successive samples of it.

    Both noise levels of a window take nearly as long to measure as its slices to read: they are
    kept.
    """

    def __init__(self, pairs: Sequence[VolumePair], order: SampleOrder) -> None:
        self.pairs, self.order = pairs, order
        self._noise: dict[tuple[int, int], Tensor] = {}

    def read(self, span: Span) -> Batch:
        """Return the samples of `span`."""
        draws = self.order.draw(*span)
        rows, columns = self.order.crop
        low, full, noise = [], [], []
        before: Draw | None = None
        for draw in draws:
            if before is None or not _same_window(before, draw):
                window = self._window(draw.pair, draw.middle)
            before = draw
            crop = (
                slice(None),
                slice(draw.row, draw.row + rows),
                slice(draw.column, draw.column + columns),
            )
            low.append(window[0][crop])
            full.append(window[1][crop])
            noise.append(window[2])
        stacked = (torch.stack(parts) for parts in (low, full, noise))
        return Batch(*stacked, *augmentation(draws))

    def _window(self, number: int, middle: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return both doses of a window, filled to the crop, and the middle slices' levels."""
        pair, key = self.pairs[number], (number, middle)
        low, full = (torch.from_numpy(read_window(s, middle)) for s in (pair.low, pair.full))
        if key not in self._noise:
            self._noise[key] = torch.cat([noise_level(low[1:2]), noise_level(full[1:2])])
        return _filled(low, self.order.crop), _filled(full, self.order.crop), self._noise[key]


def _same_window(one: Draw, other: Draw) -> bool:
    return (one.pair, one.middle) == (other.pair, other.middle)


def read_window(stack: SliceStack, middle: int) -> NDArray[np.int16]:
    """Return the three slices around `middle`, (3, rows, columns) int16 HU."""
    before, _, after = window_slices(middle, stack.shape[0])
    read = np.asarray(stack[before : after + 1])
    return read[[0, middle - before, -1]]
