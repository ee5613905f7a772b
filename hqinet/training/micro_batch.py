"""How many samples of a batch fit the memory at once."""

import math

import torch
from torch import Tensor, nn

from hqinet.memory import free_device_memory, free_memory

_MEMORY_SHARE = 0.7
"""Of the free memory that activations may take."""
_WORKSPACE = 1.5
"""Memory a training step needs over what autograd keeps: gradients of maps, workspaces."""


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
