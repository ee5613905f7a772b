"""Claim: a series is restored at nearly the rate of its network, and the first slice comes soon.

    python benchmarks/denoise.py SERIES [--model MODEL.pt2] [--slices 12]

SERIES is a folder of one low-dose CT series. Prints (1) seconds that one core computes for a slice,
whatever else runs, by several ways to run the network, their error against eager float32 within the
body, and the limit: its arithmetic at the rate of matrix products; (2) what halves of a slice, as
they are made where memory is short, differ from the whole; (3) DICOM to DICOM against the network
alone; (4) the time from a cold command to the first restored slice on the disk.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hqinet.quality.reference import find_body
from hqinet.restoration.export import load_exported
from hqinet.restoration.restore import HUModel, read_windows
from hqinet.restoration.starter import starter_file
from hqinet.restoration.tiles import within_memory
from storage.dicom.finding import find_series
from storage.dicom.geometry import Limits
from storage.dicom.pixels import HuDecoder
from storage.dicom.series import order

REPEATS = 3
SIDE = 768


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("series", type=Path)
    parser.add_argument("--model", type=Path, default=starter_file())
    parser.add_argument("--slices", type=int, default=12)
    options = parser.parse_args()
    (found,), _ = find_series(options.series)
    series = order(found.headers, Limits(min_slices=1))
    series = series.crop(0, options.slices)
    low = np.stack(list(HuDecoder(found.root, series)))
    start = time.perf_counter()
    network = load_exported(options.model)
    print(
        f"{torch.get_num_threads()} threads; the model loads in {time.perf_counter() - start:.1f} s"
    )
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    rate = ways(network, options.model, low) / cores
    halves(network, low)
    torch.set_num_threads(cores)
    dicom_to_dicom(options.series, rate)
    cold(options.series)


def ways(network: HUModel, file: Path, low: np.ndarray) -> float:
    """Seconds a slice of the eager network, the project's way; prints all ways."""
    windows = torch.from_numpy(read_windows(low, 1, 4)).float()
    one = windows[:1]
    contiguous = load_exported(file).to(memory_format=torch.contiguous_format)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(one)
    with torch.inference_mode():
        expected = torch.cat([network(window) for window in windows.split(1)])
    work = counter.get_total_flops()
    body = find_body(windows[:, 1])
    print(f"  {work / 1e9:.0f} GFLOP a slice of {one.shape[-2]} x {one.shape[-1]}")
    limit, half = work / rate_of(torch.float32), work / rate_of(torch.bfloat16)
    print(f"  limit by matrix products: float32 {limit:.2f} s, bf16 {half:.2f} s")
    eager = 0.0
    for name, way in {
        "eager, contiguous": contiguous,
        "eager, channels last (the project)": network,
        "bf16 autocast, channels last": _autocast(network),
        "torch.compile": _compiled(network, one),
    }.items():
        if way is None:
            print(f"  {name}: does not compile here")
            continue
        seconds = best(lambda way=way: way(one))
        with torch.inference_mode():
            got = torch.cat([way(window) for window in windows.split(1)])
        error = (got.float() - expected)[:, 0][body].abs().numpy()
        print(
            f"  {name}: {seconds:.3f} s, to the limit {limit / seconds:.2f}; error in the body "
            f"{error.mean():.3f} HU mean, {np.quantile(error, 0.999):.3f} "
            "HU 99.9th percentile"
        )
        eager = seconds if "project" in name else eager
    return eager


def _autocast(network: HUModel) -> HUModel:
    def run(hu: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(hu)

    return run


def _compiled(network: HUModel, example: Tensor) -> HUModel | None:
    compiled = torch.compile(network, dynamic=False)
    start = time.perf_counter()
    try:
        with torch.inference_mode():
            compiled(example)
    except Exception as error:  # noqa: BLE001 - no compiler, or one that fails
        print(f"  torch.compile: {type(error).__name__}: {str(error)[:100]}")
        return None
    print(f"  torch.compile took {time.perf_counter() - start:.0f} s")
    return compiled


def best(run: Callable[[], object]) -> float:
    """Seconds that this thread computes in the quickest of some runs."""
    taken = []
    with torch.inference_mode():
        for _ in range(REPEATS):
            start = time.thread_time()
            run()
            taken.append(time.thread_time() - start)
    return min(taken)


def rate_of(dtype: torch.dtype) -> float:
    """FLOP/s of one core in products of square matrices."""
    a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    return 2 * SIDE**3 / best(lambda: a @ b)


def halves(network: HUModel, low: np.ndarray) -> None:
    """How far a slice that was restored in parts is off the whole."""
    window = torch.from_numpy(read_windows(low, 1, 2)).float()
    body = find_body(window[:, 1])
    with torch.inference_mode():
        whole = network(window)
        removed = (window[:, 1:2] - whole)[:, 0][body].std()
        for parts in (2, 4):

            def limited(hu: Tensor, parts: int = parts) -> Tensor:
                # A little more than their share, for they overlap.
                if hu.shape[2] * hu.shape[3] > 1.6 * window.shape[2] * window.shape[3] / parts:
                    raise torch.OutOfMemoryError
                return network(hu)

            try:
                error = (within_memory(limited, window) - whole)[:, 0][body].abs().numpy()
            except torch.OutOfMemoryError:
                print(f"halves: {parts} parts of this matrix would be smaller than they overlap")
                continue
            print(
                f"halves: {parts} parts or more, {error.mean():.2f} HU mean, "
                f"{np.quantile(error, 0.999):.2f} HU 99.9th percentile; SD removed {removed:.1f} HU"
            )


def dicom_to_dicom(folder: Path, network: float) -> None:
    """A whole restoration in this process, without Prefect."""
    from flows import stores
    from flows.compute.models import Models
    from flows.compute.restoration import Prepared, Request, prepare, restore_series
    from flows.settings import DenoiseSettings

    (found,), _ = find_series(folder)
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(1) as writer:
        settings = DenoiseSettings(model="starter", device="cpu")
        models = Models("starter", None)
        models.load(models.resolve(), "cpu")
        request = Request(
            folder, Path(name), models, settings, stores.restored(), writer, lambda _: None
        )
        start = time.perf_counter()
        prepared = prepare(request, found)
        assert isinstance(prepared, Prepared), prepared
        outcome = restore_series(request, prepared)
        seconds = time.perf_counter() - start
    each = seconds / outcome.slices
    print(
        f"DICOM to DICOM: {outcome.outcome}, {each:.3f} s a slice, {network / each:.2f} of the "
        "network's rate"
    )


def cold(folder: Path) -> None:
    """From the start of a command to its first slice, and to its end."""
    with tempfile.TemporaryDirectory() as name:
        home, target = Path(name) / "home", Path(name) / "out"
        command = [Path(sys.executable).with_name("hqinet"), "denoise", folder, target]
        start = time.perf_counter()
        with subprocess.Popen(
            [*command, "--model", "starter", "--home", home], stderr=subprocess.DEVNULL
        ) as process:
            while process.poll() is None and not list(target.glob("*/0001.dcm")):
                time.sleep(0.02)
            first = time.perf_counter() - start
            process.wait()
        done = time.perf_counter() - start
        print(f"cold command: first slice after {first:.1f} s, done after {done:.1f} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        import os

        os.environ.setdefault("HQINET_HOME", home)
        main()
