"""Claim: a series is restored at nearly the rate of its network, and the first slice comes soon.

    python benchmarks/denoise.py SERIES [--slices 12] [--only ways halves dicom cold]

SERIES is a folder of one low-dose CT series, restored with the starter. Prints (1) seconds of a
core for a slice by several ways to run the network, their error against eager float32 within the
body, and the limit: its arithmetic at the rate of matrix products (OpenVINO where it is installed:
`pip install openvino`); (2) what halves of a slice, as they are made where memory is short, differ
from the whole; (3) DICOM to DICOM against the network alone; (4) the time from a cold command to
the first restored slice on the disk.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hqinet.intensity import HU_RANGE, denormalise, normalise
from hqinet.noise import noise_level
from hqinet.quality.reference import find_body
from hqinet.restoration.export import load_built, load_exported
from hqinet.restoration.precision import mixed
from hqinet.restoration.restore import HUModel, Restorer, read_windows, rounded
from hqinet.restoration.starter import RECIPE, required_starter
from hqinet.restoration.tiles import within_memory
from hqinet.training.recipe import load_recipe
from storage.dicom.finding import find_series
from storage.dicom.limits import Limits
from storage.dicom.pixels import HuDecoder
from storage.dicom.series import order

REPEATS = 3
SIDE = 768
PARTS = ("ways", "halves", "dicom", "cold")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("series", type=Path)
    parser.add_argument("--slices", type=int, default=12)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    (found,), _ = find_series(options.series)
    series = order(found.headers, Limits(min_slices=1))
    series = series.crop(0, options.slices)
    low = np.stack(list(HuDecoder(found.root, series)))
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    network = built()
    if "ways" in options.only:
        loading()
        ways(network, low)
    if "halves" in options.only:
        halves(network, low)
    torch.set_num_threads(cores)
    if "dicom" in options.only:
        dicom_to_dicom(options.series)
    if "cold" in options.only:
        cold(options.series)


def built() -> Restorer:
    """The starter as the project runs it."""
    network = load_built(required_starter(), load_recipe(RECIPE).model, dose=None)
    assert network is not None
    return network


def loading() -> None:
    """How long a core loads the starter: with its graph, and its weights alone."""
    for name, load in (
        ("graph and weights", lambda: load_exported(required_starter())),
        ("weights alone (the project)", built),
    ):
        start = time.process_time()
        load()
        print(f"loading, {name}: {time.process_time() - start:.2f} s")


def ways(network: Restorer, low: np.ndarray) -> None:
    """Print seconds of a core for a slice, and the error, of all ways to run the network."""
    windows = torch.from_numpy(read_windows(low, 1, 4)).float()
    one = windows[:1]
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(one)
    with torch.inference_mode():
        expected = torch.cat([network(window) for window in windows.split(1)])
    work = counter.get_total_flops()
    body = find_body(windows[:, 1])
    print(f"  {work / 1e9:.0f} GFLOP a slice of {one.shape[-2]} x {one.shape[-1]}")
    limit, half = work / rate_of(torch.float32), work / rate_of(torch.bfloat16)
    print(f"  limit by matrix products: float32 {limit:.2f} s, bf16 {half:.2f} s")
    bf16 = _autocast(network)
    for name, make in {
        "eager, contiguous": lambda: built().to(memory_format=torch.contiguous_format),
        "eager, channels last (the project)": lambda: network,
        "mixed, channels last (the project, with bf16 instructions)": lambda: mixed(network),
        "bf16 autocast, channels last": lambda: bf16,
        "torch.compile": lambda: torch.compile(network, dynamic=False),
        "torch.compile, bf16": lambda: torch.compile(bf16, dynamic=False),
        "AOTInductor": lambda: _aot(network, one),
        "OpenVINO": lambda: _openvino(network, one, "f32"),
        "OpenVINO, bf16": lambda: _openvino(network, one, "bf16"),
    }.items():
        start = time.perf_counter()
        try:
            way = make()
            with torch.inference_mode():
                way(one)
        except Exception as error:  # noqa: BLE001 - no compiler, not installed, or one that fails
            said = " ".join(str(error).split())[:100]
            print(f"  {name}: not here: {type(error).__name__}: {said}")
            continue
        ready = time.perf_counter() - start
        seconds = best(lambda way=way: way(one))
        with torch.inference_mode():
            got = torch.cat([way(window) for window in windows.split(1)])
        error = (got.float() - expected)[:, 0][body].abs().numpy()
        print(
            f"  {name}: {seconds:.3f} s, to the float32 limit {limit / seconds:.2f}; error in the "
            f"body {error.mean():.3f} HU mean, {np.quantile(error, 0.999):.3f} HU 99.9th "
            f"percentile; ready after {ready:.0f} s"
        )


def _autocast(network: HUModel) -> HUModel:
    def run(hu: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(hu)

    return run


def _aot(network: torch.nn.Module, example: Tensor) -> HUModel:
    """Compiled ahead of time, for one matrix."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(mode=False):
        package = torch._inductor.aoti_compile_and_package(  # noqa: SLF001 - so documented
            torch.export.export(network, (example.clone(),)),
            package_path=str(Path(folder) / "model.pt2"),
        )
        return torch._inductor.aoti_load_package(package)  # noqa: SLF001


def _openvino(network: torch.nn.Module, example: Tensor, precision: str) -> HUModel:
    """The network alone: OpenVINO has no median, by which the noise of a slice is measured."""
    import openvino

    inner = network.network
    inputs = normalise(example), noise_level(example[:, 1]) / HU_RANGE
    model = openvino.convert_model(torch.export.export(inner, tuple(x.clone() for x in inputs)))
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": precision}
    compiled = openvino.compile_model(model, "CPU", settings)

    def run(hu: Tensor) -> Tensor:
        noise = noise_level(hu[:, 1]) / HU_RANGE
        result = compiled([normalise(hu).numpy(), noise.numpy()])[0]
        restored = denormalise(torch.from_numpy(result.copy()))
        return torch.lerp(hu[:, 1:2], restored, network.removed)

    return run


def best(run: Callable[[], object]) -> float:
    """Seconds that this process computes in the quickest of some runs, with one thread at work."""
    taken = []
    with torch.inference_mode():
        for _ in range(REPEATS):
            start = time.process_time()
            run()
            taken.append(time.process_time() - start)
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


def dicom_to_dicom(folder: Path) -> None:
    """A whole restoration in this process against its network alone, on the same slices."""
    from flows.compute.models import Models, load
    from flows.compute.precision import precision_for
    from flows.compute.preparation import Request
    from flows.compute.restoration import restore_alone
    from flows.settings import DenoiseSettings
    from hqinet.quality.removal import RemovalLimits
    from storage.dicom.index import SeriesIndex

    (found,), _ = find_series(folder)
    used = Models("starter").resolve()
    low = np.stack(list(HuDecoder(found.root, order(found.headers, Limits(min_slices=1)))))
    # Measured by the first series of a home alone.
    precision = precision_for(used, None, "cpu", low)
    model = load(used, None, "cpu", precision)
    list(rounded(model, low[:4]))
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        index = SeriesIndex(place / "index")
        request = Request(
            source=folder,
            target=place / "out",
            scratch=place,
            index=index,
            refused=index,
            settings=DenoiseSettings(model="starter", device="cpu"),
            limits=RemovalLimits(),
        )
        request.target.mkdir()
        whole = timed(lambda: restore_alone(request, (found, used)))
    alone = timed(lambda: list(rounded(model, low)))
    slices = len(low)
    print(
        f"DICOM to DICOM in {precision}, {slices} slices, {torch.get_num_threads()} threads: "
        f"{whole[0] / slices:.3f} s a slice, the network alone {alone[0] / slices:.3f}: "
        f"{alone[0] / whole[0]:.2f} of its rate; by seconds of all cores "
        f"{whole[1] / slices:.3f} and {alone[1] / slices:.3f}: {alone[1] / whole[1]:.2f}"
    )


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds from start to end, and of all cores."""
    start, computed = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start, time.process_time() - computed


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
