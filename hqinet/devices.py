"""The device that trains: which one, how it multiplies fastest, how many samples fit."""

import math
import os
import time

import torch
from torch import Tensor, nn

from hqinet.samples.feed import free_device_memory, free_memory

_SIDE = 768
_WORTHWHILE = 1.2
_MEMORY_SHARE = 0.7
"""Of the free memory that activations may take."""
_WORKSPACE = 1.5
"""Memory a training step needs over what autograd keeps: gradients of maps, workspaces."""


def pick_device(name: str) -> torch.device:
    """Return the device of `auto|cpu|cuda|cuda:N|mps`; `auto` takes the fastest there is.

    Under torchrun, `cuda` is the GPU of this local rank. Raises ValueError for a device that this
    machine lacks or torch does not know.
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
        raise ValueError(f"device {name!r} is unknown; use auto, cpu, cuda or mps") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("device 'cuda' was asked for, but torch finds none; use auto or cpu")
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        return device if device.index is not None else torch.device("cuda", local_rank)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' was asked for, but torch finds none; use auto or cpu")
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


def activation_bytes(network: nn.Module, crop: tuple[int, int], device: torch.device) -> int:
    """Return the bytes autograd keeps for one sample, by running one and counting storages."""
    kept: dict[int, int] = {}
    known = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def count(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    was_training = network.training
    windows = torch.zeros(1, 3, *crop, device=device)
    noise = torch.full((1,), 0.01, device=device)
    # In evaluation mode: this sample must not enter the running statistics of batch norm.
    network.eval()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        network(windows, noise)
    network.train(was_training)
    return sum(kept.values())


def fitting_batch(
    network: nn.Module, crop: tuple[int, int], batch: int, device: torch.device
) -> int:
    """Return the largest divisor of `batch` whose activations fit the free memory, at least 1."""
    free = free_device_memory(device) if device.type == "cuda" else free_memory()
    # Gradients and Adam's two moments are yet to be allocated.
    free -= 3 * sum(4 * p.numel() for p in network.parameters())
    each = max(activation_bytes(network, crop, device), 1) * _WORKSPACE
    room = max(math.floor(free * _MEMORY_SHARE / each), 1)
    return max(size for size in range(1, batch + 1) if batch % size == 0 and size <= room)
