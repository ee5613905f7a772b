"""Whole volumes restored in HU, a few slices at a time."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hqinet.errors import HqinetError
from hqinet.intensity import HU_RANGE, denormalise, normalise
from hqinet.memory import keep_freed_memory
from hqinet.noise import noise_level
from hqinet.restoration.tiles import within_memory
from hqinet.samples.pairs import HuVolume
from hqinet.samples.slab import window_slices

HUModel = Callable[[Tensor], Tensor]
"""Three-slice windows (n, 3, h, w) float32 HU to the restored middle slices (n, 1, h, w) HU."""


class InferenceError(HqinetError):
    """A volume cannot be restored; the message is one line."""


class Restorer(nn.Module):
    """A network in HU: measures the noise of each slice, normalises, restores, denormalises."""

    def __init__(self, network: nn.Module, removed: float | None = None) -> None:
        """`removed`: of a network that estimates the slice without noise, the share taken off.

        `1 - dose` leaves the noise of the full dose, 1 none. It is a buffer of that name, which can
        be set anew. None: the network estimates the full dose, which is returned as it is.
        """
        super().__init__()
        self.network = network
        share = None if removed is None else torch.tensor(removed)
        self.register_buffer("removed", share)

    def forward(self, hu: Tensor) -> Tensor:
        """`(n, 3, h, w) float32 HU -> (n, 1, h, w) float32 HU`."""
        noise = noise_level(hu[:, 1]) / HU_RANGE
        restored = denormalise(self.network(normalise(hu), noise))
        if self.removed is None:
            return restored
        return torch.lerp(hu[:, 1:2], restored, self.removed)


def restore(
    model: HUModel, low: HuVolume, *, device: torch.device | str = "cpu", batch: int = 4
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Restore a volume, yielding `(first slice, restored (k, rows, columns) float32 HU)` in order.

    Never holds more than `batch` restored slices. On a CPU each core restores a slice of its own:
    threads that share one wait for each other at every layer, and for whatever else runs. Raises
    InferenceError where the model fails, or returns NaN, infinity or another shape.
    """
    cores = 1
    if torch.device(device).type == "cpu":
        cores = min(torch.get_num_threads(), batch)
        keep_freed_memory()
    # A thread computes by itself: torch counts the threads of each thread anew.
    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from _blocks(model, low, device, batch, pool)


def _blocks(
    model: HUModel,
    low: HuVolume,
    device: torch.device | str,
    batch: int,
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    slices = int(low.shape[0])
    for first in range(0, slices, batch):
        windows = read_windows(low, first, min(first + batch, slices))
        parts = pieces(torch.from_numpy(windows).to(device).float())
        restored = torch.cat(list(pool.map(partial(_restored, model, first), parts)))
        expected = (len(windows), 1, *low.shape[1:])
        if tuple(restored.shape) != expected:
            raise InferenceError(
                f"slices from {first}: the model returned {tuple(restored.shape)} for {expected}"
            )
        if not restored.isfinite().all():
            raise InferenceError(f"slices from {first}: the model returned NaN or infinity")
        yield first, restored[:, 0].numpy()


def rounded(
    model: HUModel,
    low: HuVolume,
    *,
    device: torch.device | str = "cpu",
    batch: int = 4,
    strength: float = 1.0,
) -> Iterator[tuple[int, NDArray[np.int16]]]:
    """As `restore`, in whole HU, as DICOM will hold them.

    strength: share of the change that is made, from 0 (the input) to 1.
    """
    limits = np.iinfo(np.int16)
    for first, restored in restore(model, low, device=device, batch=batch):
        if strength < 1:
            before = np.asarray(low[first : first + len(restored)], np.float32)
            restored = before + strength * (restored - before)
        yield first, np.rint(restored.clip(limits.min, limits.max)).astype(np.int16)


def restore_to_file(
    model: HUModel,
    low: HuVolume,
    file: Path,
    *,
    device: torch.device | str = "cpu",
    batch: int = 4,
) -> NDArray[np.int16]:
    """Restore a volume into a `.npy` file of `rounded` HU.

    Returns the file's array, mapped into memory, (slices, rows, columns). Raises as `restore`.
    """
    stored = np.lib.format.open_memmap(file, mode="w+", dtype=np.int16, shape=tuple(low.shape))
    for first, restored in rounded(model, low, device=device, batch=batch):
        stored[first : first + len(restored)] = restored
    return stored


def _restored(model: HUModel, first: int, windows: Tensor) -> Tensor:
    try:
        with torch.inference_mode():
            return within_memory(model, windows)
    except torch.OutOfMemoryError:
        # Of the machine, not of the slices.
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        rows, columns = windows.shape[-2:]
        said = " ".join(str(error).split())[:200]
        raise InferenceError(
            f"slices from {first}: the model fails on {rows} x {columns} pixels: {said}"
        ) from error


def pieces(slices: Tensor) -> Sequence[Tensor]:
    """Single slices on the CPU, whose caches hold no more; all at once on a GPU."""
    return slices.split(1) if slices.device.type == "cpu" else [slices]


def read_windows(stack: HuVolume, first: int, stop: int) -> NDArray[np.int16]:
    """Return the windows around slices `first` to `stop - 1`: (k, 3, rows, columns) int16 HU.

    Beyond both ends stands the other neighbour (`hqinet.samples.slab.window_slices`).
    """
    slices = int(stack.shape[0])
    start, end = max(first - 1, 0), min(max(stop + 1, 2), slices)
    start = min(start, max(end - 2, 0))
    read = np.asarray(stack[start:end])
    wanted = np.array([window_slices(middle, slices) for middle in range(first, stop)])
    return read[wanted - start]
