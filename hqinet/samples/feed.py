"""Where training samples come from: volumes resident in memory, or windows streamed from the store.

Both feeds give the same samples for the same numbers. Resident volumes are int16 on the device
that trains, or in main memory, and crops are cut from them there. Streaming reads windows in
threads, which decode beside each other, and holds those that are in use.
"""

import logging
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hqinet.intensity import AIR_HU
from hqinet.memory import free_device_memory, free_memory
from hqinet.noise import noise_level
from hqinet.samples.batch import Batch
from hqinet.samples.order import Draw, SampleOrder
from hqinet.samples.pairs import HuVolume, VolumePair
from hqinet.samples.slab import window_slices

logger = logging.getLogger(__name__)

Span = tuple[int, int]
"""First sample number and how many."""
DEVICE_SHARE = 0.4
"""Of the free device memory that volumes may take; the rest is the network's."""
MEMORY_SHARE = 0.6
"""Of the free main memory that volumes may take."""
_SLICES_AT_ONCE = 32
_READERS = 8
_WINDOWS_AHEAD = 16


def open_feed(
    pairs: Sequence[VolumePair], order: SampleOrder, device: torch.device
) -> "ResidentFeed | StreamingFeed":
    """Choose the feed by the memory that is free now, and say which and why."""
    needed = resident_bytes(pairs, order.crop)
    on_device = int(free_device_memory(device) * DEVICE_SHARE)
    in_memory = int(free_memory() * MEMORY_SHARE) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    place = choose_place(needed, on_device, in_memory)
    said = {
        "device": "resident on the device",
        "memory": "resident in main memory",
        "stream": f"streamed, up to {held_bytes(order) / 1e9:.2f} GB of windows held",
    }
    logger.info(
        "volumes of %d patients need %.2f GB; %.2f GB of %s memory and %.2f GB of main memory "
        "may hold them: %s",
        len(pairs),
        needed / 1e9,
        on_device / 1e9,
        device.type,
        in_memory / 1e9,
        said[place],
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
    """Return what `ResidentFeed` will hold: all of each pair, int16, padded to the crop."""
    rows, columns = crop
    return sum(
        2 * (len(p.lows) + 1) * (p.slices + 2) * max(p.matrix[0], rows) * max(p.matrix[1], columns)
        for p in pairs
    )


def held_bytes(order: SampleOrder) -> int:
    """Return what the windows of `StreamingFeed` take at most, those read ahead included."""
    rows, columns = (max(sizes) for sizes in zip(order.crop, *order.matrices, strict=True))
    return (order.windows_held + _WINDOWS_AHEAD) * 2 * 3 * 2 * rows * columns


class Window(NamedTuple):
    """Three slices of one patient, padded to the crop."""

    low: Tensor
    """(3, rows, columns) int16 HU"""
    full: Tensor
    """(3, rows, columns) int16 HU"""
    noise: Tensor
    """(2,) float32 HU: noise level of the low-dose and the full-dose middle slice"""
    partner: tuple[Tensor, Tensor] | None
    """Low and full dose, (3, rows, columns) int16 HU, of the window whose noise is mixed in"""


def _cut(draws: Sequence[Draw], windows: Sequence[Window], crop: tuple[int, int]) -> Batch:
    """Return the samples that `draws` name, each from its window."""
    rows, columns = crop
    low, full, partners = [], [], []
    for draw, window in zip(draws, windows, strict=True):
        crop_of = (
            slice(None),
            slice(draw.row, draw.row + rows),
            slice(draw.column, draw.column + columns),
        )
        low.append(window.low[crop_of])
        full.append(window.full[crop_of])
        if window.partner is None:
            partners.append(torch.zeros_like(low[-1]))
        else:
            partners.append(window.partner[0][crop_of] - window.partner[1][crop_of])
    noise = torch.stack([window.noise for window in windows])
    return Batch(torch.stack(low), torch.stack(full), torch.stack(partners), noise, draws)


class ResidentFeed:
    """Volumes as int16 tensors on one device, samples cut and gathered there."""

    def __init__(
        self, pairs: Sequence[VolumePair], order: SampleOrder, device: torch.device
    ) -> None:
        self.order = order
        with ThreadPoolExecutor(_READERS) as readers:
            loaded = readers.map(lambda pair: self._load(pair, device), pairs)
            self.lows, self.full, self.noise = zip(*loaded, strict=True)

    def _load(self, pair: VolumePair, device: torch.device) -> tuple[list[Tensor], Tensor, Tensor]:
        """Realisations of the low dose, full dose, and noise levels (realisations, slices, 2)."""
        volumes, levels = [], []
        for stack in (*pair.lows, pair.full):
            volume = torch.from_numpy(np.ascontiguousarray(stack[0 : pair.slices])).to(device)
            parts = volume.split(_SLICES_AT_ONCE)
            levels.append(torch.cat([noise_level(part) for part in parts]).cpu())
            volumes.append(_padded(volume, self.order.crop))
        *lows, full = volumes
        noise = torch.stack([torch.stack([level, levels[-1]], 1) for level in levels[:-1]])
        return lows, full, noise

    def batches(self, spans: Iterable[Span]) -> Iterator[Batch]:
        """Yield one batch for each span of sample numbers."""
        for first, count in spans:
            draws = self.order.draw(first, count)
            yield _cut(draws, [self._window(draw) for draw in draws], self.order.crop)

    def _window(self, draw: Draw) -> Window:
        low, full = self._three(draw, draw.middle)
        partner = None if draw.partner == draw.middle else self._three(draw, draw.partner)
        return Window(low, full, self.noise[draw.pair][draw.realisation, draw.middle], partner)

    def _three(self, draw: Draw, middle: int) -> tuple[Tensor, Tensor]:
        # What stands beyond the edges is stored too, so a window is always three in a row.
        inside = slice(middle, middle + 3)
        return self.lows[draw.pair][draw.realisation][inside], self.full[draw.pair][inside]


def _padded(volume: Tensor, crop: tuple[int, int]) -> Tensor:
    """Put what stands beyond both edges there, and fill up with air to the crop size."""
    slices = len(volume)
    before, after = window_slices(0, slices)[0], window_slices(slices - 1, slices)[2]
    volume = torch.cat([volume[before, None], volume, volume[after, None]])
    return _filled(volume, crop)


def _filled(volume: Tensor, crop: tuple[int, int]) -> Tensor:
    rows, columns = (max(c - s, 0) for c, s in zip(crop, volume.shape[1:], strict=True))
    return F.pad(volume, (0, columns, 0, rows), value=AIR_HU) if rows or columns else volume


class StreamingFeed:
    """Windows read from the stacks by threads, samples cut from them.

    Reading and decoding is what costs: a window is held until no sample that is asked for is cut
    from it.
    """

    def __init__(self, pairs: Sequence[VolumePair], order: SampleOrder) -> None:
        self.pairs, self.order = pairs, order

    def batches(self, spans: Iterable[Span]) -> Iterator[Batch]:
        """Yield one batch for each span of sample numbers, reading some ahead."""
        # A window in use comes again within `windows_held` samples: asked for, it is kept.
        ahead = max(self.order.windows_held, _WINDOWS_AHEAD * self.order.recipe.patches_per_slice)
        asked, samples = deque[list[Draw]](), 0
        with _Windows(self.pairs, self.order.crop) as windows:
            for draws in (self.order.draw(*span) for span in spans):
                windows.ask(draws)
                asked.append(draws)
                samples += len(draws)
                while samples > ahead:
                    samples -= len(asked[0])
                    yield self._cut(asked.popleft(), windows)
            while asked:
                yield self._cut(asked.popleft(), windows)

    def _cut(self, draws: list[Draw], windows: "_Windows") -> Batch:
        return _cut(draws, [windows.take(draw) for draw in draws], self.order.crop)


class _Windows:
    """The windows that samples are asked from, each read once."""

    def __init__(self, pairs: Sequence[VolumePair], crop: tuple[int, int]) -> None:
        self.pairs, self.crop = pairs, crop
        self.held: dict[int, Future[Window]] = {}
        self.uses = Counter[int]()

    def __enter__(self) -> Self:
        # Threads of their own for each reader's arithmetic would be more than there are cores.
        self.readers = ThreadPoolExecutor(
            _READERS, initializer=torch.set_num_threads, initargs=(1,)
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.readers.shutdown(cancel_futures=True)

    def ask(self, draws: Sequence[Draw]) -> None:
        """Have the windows of these samples read."""
        for draw in draws:
            if draw.window not in self.held:
                self.held[draw.window] = self.readers.submit(self._read, draw)
            self.uses[draw.window] += 1

    def take(self, draw: Draw) -> Window:
        """Return the window of a sample that was asked for, and forget it with its last one."""
        window = self.held[draw.window].result()
        self.uses[draw.window] -= 1
        if not self.uses[draw.window]:
            del self.held[draw.window], self.uses[draw.window]
        return window

    def _read(self, draw: Draw) -> Window:
        low, full = self._three(draw, draw.middle)
        noise = torch.cat([noise_level(low[1:2]), noise_level(full[1:2])])
        partner = None
        if draw.partner != draw.middle:
            one, other = self._three(draw, draw.partner)
            partner = _filled(one, self.crop), _filled(other, self.crop)
        return Window(_filled(low, self.crop), _filled(full, self.crop), noise, partner)

    def _three(self, draw: Draw, middle: int) -> tuple[Tensor, Tensor]:
        pair = self.pairs[draw.pair]
        low, full = (
            torch.from_numpy(read_window(stack, middle))
            for stack in (pair.lows[draw.realisation], pair.full)
        )
        return low, full


def read_window(stack: HuVolume, middle: int) -> NDArray[np.int16]:
    """Return the three slices around `middle`, (3, rows, columns) int16 HU."""
    wanted = window_slices(middle, stack.shape[0])
    first = min(wanted)
    return np.asarray(stack[first : max(wanted) + 1])[[number - first for number in wanted]]
