"""How good the network is now, by patient; what the best epoch is chosen by."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hqinet.intensity import HU_RANGE
from hqinet.networks.recipe import ModelRecipe
from hqinet.restoration.restore import Restorer
from hqinet.samples.feed import read_window
from hqinet.samples.pairs import VolumePair

Image = NDArray[np.float32]


@dataclass(frozen=True)
class ValidationResult:
    """PSNR of one validation patient and the slice to look at.

    PSNR is `10 log10(4095^2 / MSE)`, the MSE over all judged pixels of the patient in HU. It is
    for choosing an epoch; figures to state come from `hqinet.quality.metrics`.
    """

    patient: str
    low: float
    restored: float
    images: tuple[Image, Image, Image]
    """Low dose, restored, full dose of the middle slice, float32 HU (rows, columns)."""

    @property
    def gain(self) -> float:
        """PSNR restored minus PSNR of the low dose, in dB."""
        return self.restored - self.low


def judged_slices(slices: int, wanted: int | None) -> list[int]:
    """Return the slices to judge: all, or `wanted` evenly spaced ones."""
    if wanted is None or wanted >= slices:
        return list(range(slices))
    return [int((i + 0.5) * slices / wanted) for i in range(wanted)]


def validate(
    network: nn.Module,
    recipe: ModelRecipe,
    pair: VolumePair,
    device: torch.device,
    wanted: int | None,
) -> ValidationResult:
    """Restore the judged slices of one patient with `network` in evaluation mode."""
    was_training = network.training
    restorer = Restorer(network, None if pair.dose is None else recipe.removed(pair.dose)).eval()
    squared = np.zeros(2)
    judged = judged_slices(pair.slices, wanted)
    images = None
    for middle, low, restored, full in _restored(restorer, pair, judged, device):
        squared += [np.square(low - full).mean(), np.square(restored - full).mean()]
        if middle == judged[len(judged) // 2]:
            images = (low, restored, full)
    network.train(was_training)
    if images is None:
        raise ValueError(f"patient {pair.patient} has no slices")
    psnr_low, psnr_restored = (_psnr(float(s) / len(judged)) for s in squared)
    return ValidationResult(pair.patient, psnr_low, psnr_restored, images)


def _psnr(mean_squared_error: float) -> float:
    if mean_squared_error == 0:
        return math.inf
    if not math.isfinite(mean_squared_error):
        return math.nan
    return 10 * math.log10(HU_RANGE**2 / mean_squared_error)


def _restored(
    restorer: nn.Module, pair: VolumePair, judged: list[int], device: torch.device
) -> Iterator[tuple[int, Image, Image, Image]]:
    for middle in judged:
        window = torch.from_numpy(read_window(pair.low, middle)).to(device).float()
        with torch.inference_mode():
            restored = restorer(window[None])[0, 0].cpu().numpy()
        full = np.asarray(pair.full[middle : middle + 1], np.float32)[0]
        yield middle, window[1].cpu().numpy(), restored, full


def summarise(results: Sequence[ValidationResult]) -> dict[str, float]:
    """Return means over patients, the smallest gain, and each patient's gain, in dB."""
    if not results:
        return {}
    return {
        "val_psnr": float(np.mean([result.restored for result in results])),
        "val_psnr_low": float(np.mean([result.low for result in results])),
        "val_gain_worst": min(result.gain for result in results),
        **{f"val_gain.{result.patient}": result.gain for result in results},
    }
