"""The device that computes: which one, and how it multiplies fastest."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from hqinet.errors import HqinetError

_SIDE = 768
_WORTHWHILE = 1.2


class DeviceError(HqinetError):
    """A device that this machine lacks; one line that says which words are known."""


def pick_device(name: str) -> torch.device:
    """Return the device of `auto|cpu|cuda|cuda:N|mps`; `auto` takes the fastest there is.

    Under torchrun, `cuda` is the GPU of this local rank. Raises DeviceError for a device that
    this machine lacks or torch does not know.
    """
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device {name!r} is unknown; use auto, cpu, cuda or mps") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError("device 'cuda' was asked for, but torch finds none; use auto or cpu")
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        return device if device.index is not None else torch.device("cuda", local_rank)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' was asked for, but torch finds none; use auto or cpu")
    return device


def bf16_is_faster(device: torch.device) -> bool:
    """Measure whether the device multiplies bf16 matrices clearly faster than float32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    return matrix_rate(device, torch.bfloat16) > _WORTHWHILE * matrix_rate(device, torch.float32)


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int = _SIDE) -> float:
    """Return the measured rate of square matrix products in FLOP/s, the best of five."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(_seconds(a, b) for _ in range(5))


def _seconds(a: Tensor, b: Tensor) -> float:
    synchronise(a.device)
    start = time.perf_counter()
    a @ b
    synchronise(a.device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    """Wait until everything queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def slice_threads(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """A slice a thread on the CPU, torch itself single-threaded in each; one thread for a GPU."""
    count = torch.get_num_threads() if device.type == "cpu" else 1
    single = partial(torch.set_num_threads, 1) if device.type == "cpu" else None
    with ThreadPoolExecutor(count, initializer=single) as pool:
        try:
            yield pool
        finally:
            if single:
                # Setting it in a thread sets the default of threads to come, too.
                torch.set_num_threads(count)
