"""Claim: ingest reads uncompressed 512 x 512 CT at 0.7 of what this machine can do at all.

    python benchmarks/ingest.py [--patients 8] [--slices 100]

Prints slices per second, on the same files in one run, of
- the project: `flows.ingest` from scan to commit, Dask's start included, a fresh home;
- a peer: the plain loop, pydicom to HU to Zarr with the same codec, one process;
- the limit: read the bytes and compress them with the same codec on all cores, nothing else;
- what is asked for: the same with the header parsed, HU made and digested, and what was written
  read back, in the plainest way, without order, checks, pairs, Zarr, Dask, Prefect or a commit;
and the rerun as a share of the first run, and the cost of a commit and of `dataset show` at 10,
1,000 and 20,000 patients (simulated rows).
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pydicom
import zarr
from numcodecs.blosc import Blosc
from zarr.codecs import BloscCodec, Crc32cCodec

from flows.operations import home
from storage.dataset.rows import Accepted
from storage.dataset.versions import Dataset
from storage.dicom.writing import SeriesIdentity, write_series

PIXELS = 512
SHARD = 40


def main() -> None:
    """Make the data, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=8)
    parser.add_argument("--slices", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hqinet-benchmark-") as name:
        folder = Path(name)
        source = make_cohort(folder / "source", arguments.patients, arguments.slices)
        files = sorted(source.rglob("*.dcm"))
        print(f"{len(files)} slices of {PIXELS} x {PIXELS}, uncompressed, {os.cpu_count()} cores")
        measure_ingest(folder, source, files)
        measure_catalog(folder)


def make_cohort(root: Path, patients: int, slices: int) -> Path:
    """Bodies with the noise of a clinical image, low dose noisier; as a TCIA download lies."""
    y, x = np.mgrid[-1 : 1 : PIXELS * 1j, -1 : 1 : PIXELS * 1j]
    body = np.where((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1, 40.0, -1000.0)
    for patient in range(patients):
        rng = np.random.default_rng(patient)
        for description, noise in (("Full dose images", 12), ("Low dose images", 30)):
            hu = body + rng.normal(0, noise, (slices, PIXELS, PIXELS))
            identity = SeriesIdentity("LDCT", f"L{patient:03d}", description, "ABDOMEN", "SIEMENS")
            write_series(root, hu, (3.0, 0.7, 0.7), identity)
    return root


def measure_ingest(folder: Path, source: Path, files: list[Path]) -> None:
    """Print slices per second of project, peer and limit, and the rerun's share."""
    home.enter(folder / "home")
    os.environ["PREFECT_LOGGING_LEVEL"] = "CRITICAL"
    # Prefect reads its settings when it is imported.
    from flows.ingest import ingest
    from flows.operations.server import server

    with server():
        project = rate(files, lambda: ingest(str(source)))
        again = seconds(lambda: ingest(str(source)))
    first = len(files) / project
    peer_files = files[: len(files) // 4]
    peer = rate(peer_files, lambda: plain_loop(peer_files, folder / "peer"))
    limit = rate(files, lambda: on_all_cores(compress, files))
    (folder / "asked").mkdir()
    asked = rate(files, lambda: on_all_cores(partial(keep, folder / "asked"), files))
    print(f"project {project:8.1f} slices/s   {project / limit:.2f} of the limit (target 0.7)")
    print(f"peer    {peer:8.1f} slices/s   {peer / limit:.2f}  pydicom + zarr loop, one process")
    print(f"limit   {limit:8.1f} slices/s   1.00  read and compress on all cores")
    print(f"asked   {asked:8.1f} slices/s   {asked / limit:.2f}  with header, digest, read-back")
    print(f"rerun   {again:8.2f} s of {first:.2f} s   {again / first:.3f} (target 0.05)")


def plain_loop(files: list[Path], target: Path) -> None:
    """Do what a script would: a shard of slices at a time."""
    array = zarr.create_array(
        str(target),
        shape=(len(files), PIXELS, PIXELS),
        chunks=(1, PIXELS, PIXELS),
        shards=(SHARD, PIXELS, PIXELS),
        dtype="int16",
        compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"), Crc32cCodec()],
    )
    for start in range(0, len(files), SHARD):
        images = []
        for file in files[start : start + SHARD]:
            header = pydicom.dcmread(file)
            hu = header.pixel_array * header.RescaleSlope + header.RescaleIntercept
            images.append(hu.astype(np.int16))
        array[start : start + len(images)] = np.stack(images)


def on_all_cores(work: Callable[[Path], object], files: list[Path]) -> None:
    """Do it to every file, many at a time."""
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(work, files, chunksize=20):
            pass


def compress(file: Path) -> bytes:
    """The two things that cannot be left out: read the pixels as they lie, compress them."""
    return encoded(np.frombuffer(file.read_bytes()[-2 * PIXELS * PIXELS :], "<i2"))


def keep(folder: Path, file: Path) -> str:
    """What ingest is asked for besides, a file at a time."""
    header = pydicom.dcmread(file, stop_before_pixels=True)
    stored = np.frombuffer(file.read_bytes()[-2 * PIXELS * PIXELS :], "<i2")
    hu = stored * np.int16(header.RescaleSlope) + np.int16(header.RescaleIntercept)
    content, target = encoded(hu), folder / header.SOPInstanceUID
    target.write_bytes(content)
    if target.read_bytes() != content:
        raise OSError(f"{target} reads back otherwise than it was written")
    return sha256(hu).hexdigest()


def encoded(hu: np.ndarray) -> bytes:
    """The project's codec."""
    return Blosc("zstd", clevel=3, shuffle=Blosc.BITSHUFFLE).encode(hu)


def measure_catalog(folder: Path) -> None:
    """Print the cost of a commit and of showing the dataset, by number of patients."""
    model = Accepted(
        patient="",
        cohort="c",
        path="",
        digest="",
        slices=300,
        matrix=(512, 512),
        spacing=(1.0, 0.7, 0.7),
        anatomy="chest",
        vendor="GE",
        split="train",
        source="Collection/P/01-01-2022-NA-NA-00001",
        identity_evidence=("0123456789abcdef",),
        size=100_000_000,
    )
    for count in (10, 1_000, 20_000):
        rows = [
            replace(
                model,
                patient=f"P{n:06d}",
                path=f"volumes/P{n:06d}/{n:032x}",
                digest=f"{n:064x}",
                pixels=f"{n + 1:064x}",
                fingerprint=f"{n + 2:064x}",
                slice_fingerprints=tuple(f"{n * 32 + i:016x}" for i in range(32)),
            )
            for n in range(count)
        ]
        dataset = Dataset(folder / f"catalog-{count}")
        dataset.create()
        commit = seconds(lambda d=dataset, r=rows: d.commit(lambda _: r, action="benchmark"))
        show = seconds(lambda d=dataset: d.snapshot().patients())
        print(f"{count:6d} patients: commit {commit:6.3f} s   show {show:6.3f} s (target 2)")


def rate(files: list[Path], work: Callable[[], object]) -> float:
    """Files a second, all of them in the page cache and no disk still busy with what was before."""
    os.sync()
    for file in files:
        file.read_bytes()
    return len(files) / seconds(work)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
