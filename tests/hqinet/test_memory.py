"""Free memory: the machine's, and whatever limits the process's own cgroup sets."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from hqinet.memory import free_memory

GIB = 2**30


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    room = type("Room", (), {"available": 64 * GIB})()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: room)


def group(folder: Path, limit: str, used: int, cache: int = 0, *, version: int = 2) -> None:
    """Write the files of a memory cgroup."""
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 100\n{names[2]} {cache}\n")


def own(folder: Path, *lines: str) -> Path:
    file = folder / "own"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def test_without_cgroups_the_machines_memory_is_free(tmp_path: Path) -> None:
    assert free_memory(tmp_path, tmp_path / "no such file") == 64 * GIB
    assert free_memory(tmp_path, own(tmp_path, "0::/gone")) == 64 * GIB


def test_a_containers_limit_counts_and_its_page_cache_gives_way(tmp_path: Path) -> None:
    group(tmp_path, "max", 600, 200)
    assert free_memory(tmp_path, own(tmp_path, "0::/")) == 64 * GIB
    group(tmp_path, "1000", 600, 200)
    assert free_memory(tmp_path, own(tmp_path, "0::/")) == 600


def test_a_batch_jobs_own_limit_counts_and_every_one_above_it(tmp_path: Path) -> None:
    job = tmp_path / "system.slice" / "slurmstepd.scope" / "job_7"
    group(job / "step_0" / "user", "max", 500)
    group(job, str(4 * GIB), GIB)
    lines = own(tmp_path, "0::/system.slice/slurmstepd.scope/job_7/step_0/user")
    assert free_memory(tmp_path, lines) == 3 * GIB
    group(tmp_path / "system.slice", str(2 * GIB), GIB)
    assert free_memory(tmp_path, lines) == GIB


def test_the_first_version_of_cgroups_counts_too(tmp_path: Path) -> None:
    group(tmp_path / "memory" / "slurm" / "job_7", str(4 * GIB), GIB, version=1)
    group(tmp_path / "memory", "9223372036854771712", GIB, version=1)
    lines = own(tmp_path, "3:cpu,cpuacct:/slurm/job_7", "5:memory:/slurm/job_7")
    assert free_memory(tmp_path, lines) == 3 * GIB


def test_a_path_of_the_host_falls_back_to_the_containers_root(tmp_path: Path) -> None:
    group(tmp_path / "memory", str(GIB), 0, version=1)
    assert free_memory(tmp_path, own(tmp_path, "5:memory:/docker/4f2a")) == GIB


def test_more_in_use_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    group(tmp_path, "1000", 1600)
    assert free_memory(tmp_path, own(tmp_path, "0::/")) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is glibc on Linux alone")
def test_memory_of_freed_maps_is_kept_for_the_next_ones() -> None:
    code = """
import resource
from concurrent.futures import ThreadPoolExecutor
import torch
from hqinet.memory import keep_freed_memory
from hqinet.networks.hqinet import build
from hqinet.training.recipe import load_recipe

def pages_of_a_slice(network):
    torch.set_num_threads(1)
    with torch.inference_mode():
        for _ in range(8):
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
            network(torch.zeros(1, 3, 256, 256), torch.ones(1))
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

keep_freed_memory()
network = build(load_recipe("starter").model, seed=1).to(memory_format=torch.channels_last)
with ThreadPoolExecutor(1) as pool:
    print(pool.submit(pages_of_a_slice, network).result())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Some 5,000 and more where memory is given back.
    assert int(done.stdout) < 1000
