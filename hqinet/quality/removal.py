"""Whether what a model removed from a series looks like noise, judged without a full dose.

Noise has no mean in a tissue, lies no more on edges than beside them, leaves nothing behind when it
is averaged, and has the grain of the noise that is seen. What has not is anatomy.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from hqinet.devices import slice_threads
from hqinet.intensity import AIR_HU
from hqinet.noise import MAD_TO_SD, noise_level
from hqinet.quality.noise_spectrum import NoisePower, mean_frequency, power_of
from hqinet.quality.reference import (
    TISSUES,
    box_mean,
    dot,
    find_body,
    find_edges,
    find_tissues,
    gradient,
)
from hqinet.samples.pairs import HuVolume

SAMPLED_SLICES = 12
"""Of a volume, that grain and highest HU are read off; what was removed is judged in every one."""
AVERAGED = 9
"""Side in pixels of the windows in which noise averages out, and a lesion does not."""
MEASURE = 2
"""Of how removal is measured; raised where the same series would be judged otherwise."""
BY_INPUT = 5
"""How many times the bias that noise feigns by the output's tissues it feigns by the input's."""
LEAST_TISSUE = 0.001
"""Of the body's pixels, what a tissue has at least: the mean of fewer is the noise's."""
_BIAS = {"lung": 10.0, "fat": 5.0, "soft": 4.0, "bone": 20.0}


class RemovalLimits(BaseModel):
    """How much what was removed may differ from noise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bias: dict[str, Annotated[float, Field(ge=0)]] = Field(
        _BIAS,
        description="Largest mean of what was removed in a tissue, HU, either sign; a tissue that "
        "is not named keeps its default.",
    )
    feigned: float = Field(
        0.03, ge=0, description="Of the input's noise level, what is allowed of bias on top."
    )
    on_edges: float = Field(
        3.0, gt=1, description="Largest RMS on the steepest edges, over that of the whole body."
    )
    structure: float = Field(
        16.0,
        gt=1,
        description="Largest mean over a window of 9 x 9 pixels, over the RMS of such means.",
    )
    frequency: tuple[float, float] = Field(
        (0.7, 3.5),
        description="Least and largest mean frequency, over that of the input's noise.",
    )
    least: float = Field(
        0.05, ge=0, description="Least RMS in the body, over the noise level of the input."
    )

    @field_validator("bias")
    @classmethod
    def _every_tissue(cls, bias: dict[str, float]) -> dict[str, float]:
        if unknown := sorted(set(bias) - set(_BIAS)):
            raise ValueError(f"{unknown} are no tissues: name some of {', '.join(_BIAS)}")
        return _BIAS | bias


class Removal(BaseModel):
    """What was removed from a series, in the terms of RemovalLimits; NaN where nothing is there.

    Attributes:
        noise: level of the input's, HU.
        bias: mean by the tissues that the output shows, HU. Strong noise lifts pixels of the input
            into a tissue's bin, and its removal would look like a bias.
        taken: mean by the tissues of the input, HU: of what a model takes away, nothing is in the
            output.
    """

    noise: float
    bias: dict[str, float]
    taken: dict[str, float]
    on_edges: float
    structure: float
    frequency: float
    amount: float

    def objections(self, limits: RemovalLimits) -> list[str]:
        """Why the series must not be used, one line a reason."""
        feigned = limits.feigned * self.noise
        found = [
            f"{of[tissue]:+.1f} HU were removed from {what}{tissue}, allowed {allowed + more:.3g}"
            for what, of, more in (
                ("", self.bias, feigned),
                ("what was ", self.taken, BY_INPUT * feigned),
            )
            for tissue, allowed in limits.bias.items()
            if abs(of.get(tissue, 0.0)) > allowed + more
        ]
        if self.on_edges > limits.on_edges:
            found.append(
                f"{self.on_edges:.1f} times as much was removed on edges as elsewhere, allowed "
                f"{limits.on_edges:g}: anatomy, not noise"
            )
        if self.structure > limits.structure:
            found.append(
                f"a region was changed by {self.structure:.0f} times what noise leaves in a mean, "
                f"allowed {limits.structure:g}: anatomy, not noise"
            )
        least, most = limits.frequency
        # NaN, where no region fits into the body, is no reason.
        if self.frequency < least or self.frequency > most:
            found.append(
                f"the mean frequency of what was removed is {self.frequency:.2f} times that of the "
                f"noise, allowed {least:g} to {most:g}: another grain than the noise has"
            )
        if self.amount < limits.least:
            found.append(
                f"{self.amount:.1%} of the noise was removed, expected {limits.least:.0%} or more: "
                "the model does nothing here"
            )
        return found


def judge_removal(low: HuVolume, restored: HuVolume) -> Removal:
    """Measure what a model removed from each slice of a volume (slices, rows, columns)."""
    slices = int(low.shape[0])
    chosen = np.unique(np.linspace(0, slices - 1, SAMPLED_SLICES).astype(int)).tolist()

    def measure(z: int) -> dict[str, Any]:
        ((before, after),) = _pairs(low, restored, [z])
        return _measure(before, after)

    with slice_threads(torch.device("cpu")) as threads:
        measured = list(threads.map(measure, range(slices)))
    levels = [one["noise"] for one in measured if one["noise"] is not None]
    return Removal(
        noise=float(np.median(levels)) if levels else 0.0,
        bias=_bias(measured, "after"),
        taken=_bias(measured, "before"),
        on_edges=_median(measured, "on_edges"),
        structure=max(one["structure"] for one in measured),
        frequency=_frequency(low, restored, chosen) / mean_frequency(noise_power(low)),
        amount=_median(measured, "amount"),
    )


def noise_power(volume: HuVolume, spacing: tuple[float, float] = (1.0, 1.0)) -> NoisePower:
    """The NPS of a volume's noise, frequencies in 1 over the unit of the pixel spacing.

    Of the differences of neighbouring slices inside the body, in which most anatomy cancels; what
    remains of it makes frequencies lower. Empty for one slice, and where no region fits in.
    """
    slices, rows, columns = map(int, volume.shape)
    last = slices - 2
    chosen = np.unique(np.linspace(0, last, SAMPLED_SLICES).astype(int)) if last >= 0 else []
    pairs = (torch.from_numpy(np.array(volume[z : z + 2])).float().split(1) for z in chosen)
    changes = ((other - one, find_body(one)) for one, other in pairs)
    return power_of(changes, (rows, columns), spacing)


def highest_hu(volume: HuVolume) -> float:
    """The HU that one pixel in a thousand of the body exceeds: bone, or metal."""
    slices = int(volume.shape[0])
    chosen = np.unique(np.linspace(0, slices - 1, SAMPLED_SLICES).astype(int))
    images = [torch.from_numpy(np.array(volume[z : z + 1])).float() for z in chosen.tolist()]
    inside = np.concatenate([image[find_body(image)].numpy() for image in images])
    return float(np.quantile(inside, 0.999)) if inside.size else float(AIR_HU)


def _frequency(low: HuVolume, restored: HuVolume, chosen: list[int]) -> float:
    removed = ((a - b, find_body(a)) for a, b in _pairs(low, restored, chosen))
    matrix = int(low.shape[1]), int(low.shape[2])
    return mean_frequency(power_of(removed, matrix, (1.0, 1.0)))


def _pairs(low: HuVolume, restored: HuVolume, chosen: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    for z in chosen:
        yield tuple(
            torch.from_numpy(np.array(volume[z : z + 1])).float() for volume in (low, restored)
        )


def _measure(low: Tensor, restored: Tensor) -> dict[str, Any]:
    """What was removed from one slice, (1, rows, columns); sums over masks, which are faster."""
    removed = low - restored
    # Of the input: a body that the model took away would be missed in the output.
    body = find_body(low)
    if not body.any():
        nothing: dict[str, Any] = {"noise": None, "pixels": 0, "before": {}, "after": {}}
        return nothing | {"on_edges": 1.0, "structure": 0.0, "amount": 1.0}
    smooth = box_mean(F.pad(low[:, None], (2, 2, 2, 2), mode="replicate"), 5)[:, 0]
    squares = removed.square()
    rms = max(_mean(squares, body), 1e-12) ** 0.5
    edges = _mean(squares, find_edges(gradient(low), body)) ** 0.5
    noise = float(noise_level(low)[0])
    return {
        "noise": noise,
        "pixels": int(body.sum()),
        "before": _sums(removed, find_tissues(smooth, body)),
        "after": _sums(removed, find_tissues(restored, body)),
        "on_edges": 1.0 if math.isnan(edges) else edges / rms,
        "structure": _structure(removed, body),
        "amount": rms / noise,
    }


def _structure(removed: Tensor, body: Tensor) -> float:
    """The largest mean over a window whose centre is body, over the robust RMS of such means."""
    border = AVERAGED // 2
    inside = body[:, border:-border, border:-border]
    means = box_mean(removed, AVERAGED).abs_()
    # Neighbouring windows are nearly the same one: a few tell how large means are as a rule.
    step = AVERAGED // 4
    some = means[:, ::step, ::step][inside[:, ::step, ::step]]
    if not some.numel():
        return 0.0
    spread = max(float(some.median()), 0.1) * MAD_TO_SD
    return float(means.mul_(inside.view(torch.uint8)).max()) / spread


def _sum(x: Tensor, mask: Tensor) -> tuple[float, float]:
    """Sum of a map over a mask, both (1, rows, columns), and the number of its pixels."""
    weights = mask.view(torch.uint8).float()
    return float(dot(x, weights)), float(weights.sum())


def _mean(x: Tensor, mask: Tensor) -> float:
    """Mean of a map over a mask; NaN where the mask is empty."""
    total, pixels = _sum(x, mask)
    return total / pixels if pixels else math.nan


def _sums(removed: Tensor, tissues: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    return {name: _sum(removed, mask) for name, mask in tissues.items()}


def _bias(measured: list[dict[str, Any]], tissues: str) -> dict[str, float]:
    """Of each tissue the mean of what was removed from all slices, where there is enough of it."""
    total = {name: np.zeros(2) for name in TISSUES}
    for one in measured:
        for name, found in one[tissues].items():
            total[name] += found
    body = sum(one["pixels"] for one in measured)
    return {
        name: float(removed / pixels)
        for name, (removed, pixels) in total.items()
        if pixels > LEAST_TISSUE * body
    }


def _median(measured: list[dict[str, Any]], name: str) -> float:
    return float(np.median([one[name] for one in measured]))
