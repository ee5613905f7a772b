"""Memory: how much a process may still take, whatever limits it, and what becomes of freed maps."""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


class _Names(NamedTuple):
    """Files of one version of cgroups."""

    limit: str
    used: str
    cache: str
    """Key in `memory.stat` of the page cache that gives way."""


_V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Names("memory.max", "memory.current", "inactive_file")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Parameters of glibc's `mallopt`."""
_LARGEST_MMAP_THRESHOLD = 32 * 2**20


def keep_freed_memory() -> None:
    """Have the C library keep the memory of freed maps for the next ones; glibc only.

    It gives maps of a megabyte and more back at once, and the kernel clears each page of the next
    one anew: a tenth of the time of a slice or a training step on a CPU. The process stays as large
    as it once was.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    # Threads other than the first get arenas of their own, which are always given back.
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch found no memory: a GPU has an error of its own for it, the CPU words alone."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def free_device_memory(device: torch.device) -> int:
    """Return the free bytes of a CUDA device; 0 where device and main memory are one."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def free_memory(mount: Path = _CGROUPS, own: Path = _OWN) -> int:
    """Return the bytes of main memory that this process may still take.

    The limits of its own cgroup and of all above it count, in both versions of cgroups: SLURM sets
    one on each job, below the machine's root.

    mount: where cgroups are mounted. own: the kernel's list of the process's cgroups.
    """
    rooms = [_room(folder, names) for folder, names in _groups(mount, own)]
    limits = [room for room in rooms if room is not None]
    return max(min([psutil.virtual_memory().available, *limits]), 0)


def _groups(mount: Path, own: Path) -> Iterator[tuple[Path, _Names]]:
    """Yield the folders of the process's memory cgroups, up to the root of their mount."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = mount, _V2
        elif "memory" in controllers.split(","):
            root, names = mount / "memory", _V1
        else:
            continue
        # In a container the path may be the host's, of which the mount shows the last part only:
        # folders that are not there are passed over, and the root always counts.
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            yield folder, names
            if folder == root:
                break


def _room(group: Path, names: _Names) -> int | None:
    """Return what a cgroup may still take in bytes; None without a limit."""
    try:
        limit = int((group / names.limit).read_text())
        used = int((group / names.used).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # not there, or no limit ("max")
        return None
    return limit - used + int(statistics.get(names.cache, 0))
