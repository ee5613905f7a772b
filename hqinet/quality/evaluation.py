"""One patient measured: low dose and restored against full dose, slice by slice."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hqinet.devices import slice_threads
from hqinet.quality.metrics import METRICS, measure
from hqinet.quality.noise_spectrum import NoisePower, NoisePowerMeter
from hqinet.quality.reference import Reference, prepare_reference
from hqinet.restoration.restore import pieces
from hqinet.samples.pairs import HuVolume, VolumePair

RESTORED = "restored"


@dataclass(frozen=True)
class Measured:
    """What is measured of one patient.

    per_slice: one row a slice and image, as `statistics` wants it.
    noise: the NPS of each image less the full dose.
    """

    per_slice: pd.DataFrame
    noise: dict[str, NoisePower]


def measure_patient(
    pair: VolumePair,
    restored: HuVolume,
    *,
    spacing: tuple[float, float],
    device: torch.device,
    batch: int,
) -> Measured:
    """Measure every slice of a patient, low dose and restored, `batch` slices in memory at once.

    spacing: row and column spacing in mm.
    """
    images = {"low": pair.low, RESTORED: restored}
    return _measure(pair, images, spacing=spacing, device=device, batch=batch)


def measure_unrestored(
    pair: VolumePair, *, spacing: tuple[float, float], device: torch.device, batch: int
) -> Measured:
    """Measure the low dose of a patient that a model could not restore; restored is NaN."""
    measured = _measure(pair, {"low": pair.low}, spacing=spacing, device=device, batch=batch)
    nothing = dict.fromkeys(METRICS, np.nan)
    restored = measured.per_slice.assign(image=RESTORED, **nothing)
    return Measured(pd.concat([measured.per_slice, restored], ignore_index=True), measured.noise)


def _measure(
    pair: VolumePair,
    images: Mapping[str, HuVolume],
    *,
    spacing: tuple[float, float],
    device: torch.device,
    batch: int,
) -> Measured:
    rows: list[pd.DataFrame] = []
    meters = {name: NoisePowerMeter(pair.matrix, spacing) for name in images}
    with slice_threads(device) as pool:
        for start in range(0, pair.slices, batch):
            stop = min(start + batch, pair.slices)
            full, low, *others = (
                pieces(_slices(volume, start, stop, device))
                for volume in (pair.full, *images.values())
            )
            measured = pool.map(partial(_measure_slices, pair.anatomy), full, low, *others)
            for reference, values in measured:
                for (name, meter), (image, of_slices) in zip(meters.items(), values, strict=True):
                    meter.add(image - reference.full, reference.regions["body"])
                    rows.append(_frame(pair, name, start, of_slices))
                start += len(reference.full)
    noise = {name: meter.result() for name, meter in meters.items()}
    return Measured(pd.concat(rows, ignore_index=True), noise)


def _slices(volume: HuVolume, start: int, stop: int, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(volume[start:stop])).to(device).float()


def _measure_slices(
    anatomy: str, full: Tensor, low: Tensor, *others: Tensor
) -> tuple[Reference, list[tuple[Tensor, dict[str, np.ndarray]]]]:
    reference = prepare_reference(full, low, anatomy)
    return reference, [
        (image, {key: value.numpy() for key, value in measure(image, reference).items()})
        for image in (low, *others)
    ]


def _frame(pair: VolumePair, image: str, start: int, values: dict[str, np.ndarray]) -> pd.DataFrame:
    count = len(next(iter(values.values())))
    keys = {
        "patient": pair.patient,
        "anatomy": pair.anatomy,
        "image": image,
        "slice": np.arange(start, start + count),
    }
    return pd.DataFrame(keys | values)
