"""One patient judged: restored slice by slice, measured, and the slices worth looking at kept."""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hqinet.quality.metrics import measure
from hqinet.quality.noise_spectrum import NoisePower, NoisePowerMeter
from hqinet.quality.reference import Reference, prepare_reference
from hqinet.report.key_slices import View, choose_slices, keep_views
from hqinet.restoration.restore import HUModel, pieces, restore
from hqinet.samples.sampling import VolumePair

CHOSEN_BY = "psnr_window"
"""The metric that names a patient's best, median and worst slice."""


@dataclass(frozen=True)
class PatientResult:
    """What an evaluation keeps of one patient.

    per_slice: one row a slice and image ("low", "restored"), as `statistics` wants it.
    noise: the NPS of low less full and of restored less full. views: slices to look at.
    """

    patient: str
    anatomy: str
    per_slice: pd.DataFrame
    noise: dict[str, NoisePower]
    views: list[View]


def evaluate_patient(
    pair: VolumePair,
    model: HUModel,
    *,
    spacing: tuple[float, float],
    device: torch.device,
    batch: int,
    scratch: Path,
    budget: int,
) -> PatientResult:
    """Restore and measure one patient; memory is bounded by `batch` slices.

    spacing: row and column spacing in mm. scratch: where the restored volume lies meanwhile.
    budget: bytes that this patient's views may take.
    """
    rows: list[pd.DataFrame] = []
    meters = {name: NoisePowerMeter(pair.matrix, spacing) for name in ("low", "restored")}
    with tempfile.TemporaryDirectory(dir=scratch) as folder, threads(device) as pool:
        kept = np.lib.format.open_memmap(
            Path(folder) / "restored.npy", mode="w+", dtype=np.int16, shape=tuple(pair.low.shape)
        )
        for start, restored in restore(model, pair.low, device=device, batch=batch):
            stop = start + len(restored)
            kept[start:stop] = np.rint(np.clip(restored, -32768, 32767))
            low, full, image = (
                torch.from_numpy(np.ascontiguousarray(slices)).to(device).float()
                for slices in (pair.low[start:stop], pair.full[start:stop], restored)
            )
            measured = pool.map(
                partial(_measure_slices, pair.anatomy), *(pieces(x) for x in (full, low, image))
            )
            for reference, images in measured:
                for name, (shown, values) in images.items():
                    meters[name].add(shown - reference.full, reference.regions["body"])
                    rows.append(_frame(pair, name, start, values))
                start += len(reference.full)
        per_slice = pd.concat(rows, ignore_index=True)
        quality = per_slice[per_slice["image"] == "restored"][CHOSEN_BY].to_numpy()
        labels = choose_slices(quality)
        views = keep_views(pair, kept, labels, budget)
    noise = {name: meter.result() for name, meter in meters.items()}
    return PatientResult(pair.patient, pair.anatomy, per_slice, noise, views)


def _measure_slices(
    anatomy: str, full: Tensor, low: Tensor, restored: Tensor
) -> tuple[Reference, dict[str, tuple[Tensor, dict[str, np.ndarray]]]]:
    reference = prepare_reference(full, low, anatomy)
    images = {"low": low, "restored": restored}
    return reference, {
        name: (image, {key: value.numpy() for key, value in measure(image, reference).items()})
        for name, image in images.items()
    }


@contextmanager
def threads(device: torch.device) -> Iterator[ThreadPoolExecutor]:
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


def _frame(pair: VolumePair, image: str, start: int, values: dict[str, np.ndarray]) -> pd.DataFrame:
    count = len(next(iter(values.values())))
    keys = {
        "patient": pair.patient,
        "anatomy": pair.anatomy,
        "image": image,
        "slice": np.arange(start, start + count),
    }
    return pd.DataFrame(keys | values)
