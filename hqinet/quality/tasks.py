"""What a reader can still do with a patient's restored slices, measured on a few of them.

Whether noise looks like full dose's, whether edges are as sharp, whether structure came in that is
not there, and what an observer makes of lesions of known size and contrast. These are put into
full and low dose alike, for the noise that was added does not depend on them, and the low dose with
lesions is restored again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from hqinet.quality.ceiling import share_of_ceiling
from hqinet.quality.detectability import (
    BANDS,
    CHANNELS,
    difference_of_gaussians,
    laguerre_gauss,
    lesion,
)
from hqinet.quality.edge_response import CONTRASTS, edge_profiles, relative_sharpness
from hqinet.quality.noise_spectrum import mean_frequency, power_of
from hqinet.quality.reference import box_mean, find_body, find_edges, gradient, window, window_of
from hqinet.quality.visual_fidelity import SMALLEST, visual_fidelity
from hqinet.restoration.restore import HUModel, InferenceError, read_windows
from hqinet.samples.pairs import HuVolume, VolumePair

Array = NDArray[np.float64]
SLICES = 10
"""Of a patient, evenly spaced."""
REGION_MM = 28.0
"""Side of what the observer sees around a place."""
FEWEST_PIXELS = 9
"""A side of it; of coarser images no lesion is judged."""
LESIONS: Mapping[str, tuple[float, float]] = {
    "absent": (8.0, 0.0),
    "lesion": (8.0, -40.0),
    "smaller": (6.0, -40.0),
    "fainter": (8.0, -30.0),
}
"""Diameter in mm and contrast in HU; edges fall off over half a millimetre."""
LAGUERRE_GAUSS = slice(0, CHANNELS)
"""Of what the channels see of a place: those as wide as the lesions."""
DIFFERENCE_OF_GAUSSIANS = slice(CHANNELS, CHANNELS + BANDS)
"""Those of human vision."""
DISPLAYED_MM = 0.7
"""Pixel of the display that their bands are for."""
SOFT = (-20.0, 150.0)
"""HU of the smoothed full dose all around a place."""
FLAT = 9
"""Side in pixels of the windows in which noise averages out, and structure does not."""
FEWEST_EDGES = 100
IMAGES = ("low", "restored", "full")
Number = Annotated[
    float | None, BeforeValidator(lambda x: x if x is not None and isfinite(x) else None)
]
"""A figure; None for what is not finite."""


class TaskFigures(BaseModel):
    """A patient's figures; None where the images have nothing to measure."""

    model_config = ConfigDict(frozen=True)

    share: Number = Field(description="Of the ceiling of PSNR (`hqinet.quality.ceiling`).")
    frequency: dict[str, Number] = Field(
        description="Mean frequency of each image's noise, 1/mm, from differences of neighbouring "
        "slices; they leave some anatomy where slices are thick."
    )
    sharpness: dict[str, Number] = Field(
        description="Slope of edges by contrast, over that of the full dose."
    )
    fidelity: dict[str, Number] = Field(
        description="Visual information fidelity of low and restored in the display window."
    )
    invented: Number = Field(
        description="Structure in flat places of the restored slices that full dose has not, over "
        "that of the low dose: 99.9th percentile of the mean error over 9 x 9 pixels."
    )

    @property
    def texture(self) -> float | None:
        """Mean frequency of the restored image's noise over that of the full dose's."""
        ours, theirs = self.frequency["restored"], self.frequency["full"]
        return None if ours is None or theirs is None else ours / theirs


@dataclass(frozen=True)
class Tasks:
    """What was measured of one patient.

    Attributes:
        answers: of the observers' channels, by image: (kinds of LESIONS, places, channels).
        profiles: across the edges of a contrast, in the restored image and in full dose.
        example: one place, by image: (without, with a lesion; rows, columns) HU; empty without any.
    """

    figures: TaskFigures
    answers: dict[str, Array]
    profiles: dict[str, tuple[Array, Array]]
    example: dict[str, Array]


@dataclass(frozen=True)
class _Chosen:
    """The slices that are judged, (n, rows, columns) float32 HU, and the body in them."""

    numbers: list[int]
    images: dict[str, Tensor]
    body: Tensor


def perform_tasks(
    pair: VolumePair,
    restored: HuVolume,
    model: HUModel,
    *,
    spacing: tuple[float, float],
    device: torch.device,
) -> Tasks:
    """Measure a patient whose low dose `model` restored to `restored`.

    spacing: row and column spacing in mm. Raises InferenceError where the model fails on a slice
    with lesions.
    """
    numbers = np.unique(np.linspace(0, pair.slices - 1, SLICES).astype(int)).tolist()
    volumes = {"low": pair.low, "restored": restored, "full": pair.full}
    images = {name: _slices(volume, numbers) for name, volume in volumes.items()}
    chosen = _Chosen(numbers, images, find_body(images["full"]))
    share = share_of_ceiling(
        images["low"], images["restored"], images["full"], chosen.body, pair.known_dose()
    )
    finite = share[share.isfinite()]
    profiles = {kind: edges for kind in CONTRASTS if (edges := _profiles(chosen, kind))}
    answers, example = _answers(pair.low, chosen, model, sum(spacing) / 2, device)
    figures = TaskFigures(
        share=float(finite.mean()) if len(finite) else None,
        frequency={name: _frequency(volumes[name], chosen, spacing) for name in IMAGES},
        sharpness={
            kind: relative_sharpness(*profiles[kind]) if kind in profiles else None
            for kind in CONTRASTS
        },
        fidelity=_fidelity(chosen, pair.anatomy),
        invented=_invented(chosen),
    )
    return Tasks(figures, answers, profiles, example)


def _slices(volume: HuVolume, numbers: Sequence[int]) -> Tensor:
    return torch.cat([torch.from_numpy(np.array(volume[z : z + 1])) for z in numbers]).float()


def _frequency(volume: HuVolume, chosen: _Chosen, spacing: tuple[float, float]) -> float:
    slices, rows, columns = map(int, volume.shape)
    changes = (
        (_slices(volume, [z, z + 1]).diff(dim=0), body[None])
        for body, z in zip(chosen.body, chosen.numbers, strict=True)
        if z + 1 < slices
    )
    return mean_frequency(power_of(changes, (rows, columns), spacing))


def _profiles(chosen: _Chosen, kind: str) -> tuple[Array, Array] | None:
    """Mean profiles across the edges of a contrast, restored and full; None for too few."""
    sums: list[Array] = []
    count = 0
    slices = zip(chosen.images["restored"], chosen.images["full"], chosen.body, strict=True)
    for restored, full, body in slices:
        *profiles, found = edge_profiles(restored, full, body, kind)
        if found:
            weighted = [found * profile for profile in profiles]
            sums = [a + b for a, b in zip(sums, weighted, strict=True)] if sums else weighted
            count += found
    if count < FEWEST_EDGES:
        return None
    restored, full = (profile / count for profile in sums)
    return restored, full


def _fidelity(chosen: _Chosen, anatomy: str) -> dict[str, float]:
    if min(chosen.body.shape[1:]) < SMALLEST:
        return {"low": np.nan, "restored": np.nan}
    shown = {name: 255 * window(x, window_of(anatomy)) for name, x in chosen.images.items()}
    return {
        name: float(visual_fidelity(shown[name], shown["full"]).nanmean())
        for name in ("low", "restored")
    }


def _invented(chosen: _Chosen) -> float:
    full = chosen.images["full"]
    border = FLAT // 2
    # Edges are ranked: what is left is the flatter half of the body.
    flat = chosen.body & ~find_edges(gradient(full), chosen.body, share=0.5)
    flat = flat[:, border:-border, border:-border]
    if flat.sum() < 1 / 0.001:
        return np.nan
    errors = (box_mean(chosen.images[name] - full, FLAT)[flat] for name in ("restored", "low"))
    ours, before = (float(np.quantile(error.abs().numpy(), 0.999)) for error in errors)
    return ours / before if before > 0 else np.nan


def _answers(
    low: HuVolume, chosen: _Chosen, model: HUModel, pixel: float, device: torch.device
) -> tuple[dict[str, Array], dict[str, Array]]:
    """What the channels see at each place with each of LESIONS, and one place as an example."""
    side = round(REGION_MM / pixel)
    channels = np.concatenate(
        [
            laguerre_gauss(side, 1.5 * LESIONS["lesion"][0] / pixel) * pixel,
            difference_of_gaussians(side, pixel / DISPLAYED_MM),
        ]
    )
    drawn = {
        kind: torch.from_numpy(lesion(side, pixel, diameter=d, contrast=c, edge=0.5)).float()
        for kind, (d, c) in LESIONS.items()
    }
    seen: dict[str, list[list[Array]]] = {name: [[] for _ in drawn] for name in IMAGES}
    shown: dict[str, list[Array]] = {name: [] for name in IMAGES}
    for index, z in enumerate(chosen.numbers):
        places = list(smooth_places(chosen.images["full"][index], side))
        if not places:
            continue
        windows = torch.from_numpy(read_windows(low, z, z + 1)).float()
        for number, (kind, shape) in enumerate(drawn.items()):
            put = put_in(places, shape, tuple(windows.shape[2:]))
            images = {name: chosen.images[name][index] + put for name in ("low", "full")}
            images["restored"] = (
                chosen.images["restored"][index]
                if kind == "absent"
                else _restored(model, windows + put, z, device)
            )
            for name, image in images.items():
                seen[name][number] += [_seen(image, place, side, channels) for place in places]
                if len(shown[name]) == number < 2:
                    shown[name].append(_region(image, places[0], side))
    count = len(channels)
    answers = {
        name: np.array(kinds, dtype=np.float64).reshape(len(drawn), -1, count)
        for name, kinds in seen.items()
    }
    return answers, {name: np.array(regions) for name, regions in shown.items()}


def _restored(model: HUModel, windows: Tensor, z: int, device: torch.device) -> Tensor:
    with torch.inference_mode():
        image = model(windows.to(device)).float().cpu()[0, 0]
    if not image.isfinite().all():
        raise InferenceError(f"slice {z} with lesions: the model returned NaN or infinity")
    return image


def smooth_places(full: Tensor, side: int) -> Iterator[tuple[int, int]]:
    """First row and column of the regions of a grid that hold soft tissue alone.

    `full`: (rows, columns) HU; judged by means over 7 x 7 pixels, or noise would choose.
    """
    if side < FEWEST_PIXELS:
        return
    rows, columns = full.shape
    for row in range(0, rows - side + 1, side):
        for column in range(0, columns - side + 1, side):
            mean = F.avg_pool2d(full[None, row : row + side, column : column + side], 7, 1)
            if mean.min() > SOFT[0] and mean.max() < SOFT[1]:
                yield row, column


def put_in(places: Sequence[tuple[int, int]], shape: Tensor, matrix: tuple[int, int]) -> Tensor:
    """Return what is added to a slice (rows, columns) to have a lesion at each place."""
    side = len(shape)
    added = torch.zeros(matrix)
    for row, column in places:
        added[row : row + side, column : column + side] = shape
    return added


def _seen(image: Tensor, place: tuple[int, int], side: int, channels: Array) -> Array:
    """What the channels see of a region, less the mean around the lesion: organs differ in HU."""
    region = _region(image, place, side)
    axis = np.arange(side) - (side - 1) / 2
    around = np.hypot(axis[:, None], axis) > side / 3
    return channels @ (region - region[around].mean()).ravel()


def _region(image: Tensor, place: tuple[int, int], side: int) -> Array:
    row, column = place
    return image[row : row + side, column : column + side].double().numpy()
