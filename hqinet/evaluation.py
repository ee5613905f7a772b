"""One patient judged: restored slice by slice, measured, and the slices worth looking at kept."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hqinet.inference import HUModel, restore
from hqinet.metrics import measure
from hqinet.sampling import VolumePair
from hqinet.scene import set_scene
from hqinet.spectrum import NoisePower, NoisePowerMeter
from hqinet.viewing import View, choose_slices, keep_views

CHOSEN_BY = "psnr_window"
"""The metric that names a patient's best, median and worst slice."""


@dataclass(frozen=True)
class PatientResult:
    """What an evaluation keeps of one patient.

    per_slice: one row a slice and image ("low", "restored"), as `hqinet.statistics` wants it.
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
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        kept = np.lib.format.open_memmap(
            Path(folder) / "restored.npy", mode="w+", dtype=np.int16, shape=tuple(pair.low.shape)
        )
        for start, restored in restore(model, pair.low, device=device, batch=batch):
            stop = start + len(restored)
            low, full = (_load(stack[start:stop], device) for stack in (pair.low, pair.full))
            scene = set_scene(full, low, pair.anatomy)
            for name, image in (("low", low), ("restored", torch.as_tensor(restored).to(low))):
                meters[name].add(image - full, scene.body)
                values = {key: value.numpy() for key, value in measure(image, scene).items()}
                rows.append(_frame(pair, name, start, values))
            kept[start:stop] = np.rint(np.clip(np.asarray(restored), -32768, 32767))
        per_slice = pd.concat(rows, ignore_index=True)
        quality = per_slice[per_slice["image"] == "restored"][CHOSEN_BY].to_numpy()
        labels = choose_slices(quality)
        views = keep_views(pair, kept, labels, budget)
    noise = {name: meter.result() for name, meter in meters.items()}
    return PatientResult(pair.patient, pair.anatomy, per_slice, noise, views)


def _load(slices: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(slices)).to(device).float()


def _frame(pair: VolumePair, image: str, start: int, values: dict[str, np.ndarray]) -> pd.DataFrame:
    count = len(next(iter(values.values())))
    keys = {
        "patient": pair.patient,
        "anatomy": pair.anatomy,
        "image": image,
        "slice": np.arange(start, start + count),
    }
    return pd.DataFrame(keys | values)
