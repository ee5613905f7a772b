"""Claim: the observer is the FDA's, on the FDA's own images.

`python benchmarks/observer.py LCD_CT`, a checkout of https://github.com/DIDSR/LCD_CT: the toolbox's
small dataset (a phantom of four inserts, FBP, three doses, which are pooled: ten images of a kind
are too few for a covariance) by its own Python observers and by `hqinet.quality.detectability`,
each learning on every second image and tested on the rest, and the other way round.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hqinet.quality.detectability import (
    detectability_index,
    difference_of_gaussians,
    laguerre_gauss,
)

DOSES = ("010", "055", "100")
LAGUERRE_GAUSS = 5
"""Channels of the toolbox."""
Array = NDArray[np.float64]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("toolbox", type=Path)
    toolbox: Path = arguments.parse_args().toolbox
    sys.path.insert(0, str(toolbox / "src"))
    from lcdct import Observers, utils  # the checkout's

    folder = toolbox / "data" / "small_dataset" / "fbp"
    doses = [utils.load_dataset(folder / f"dose_{dose}", offset=1000) for dose in DOSES]
    present, absent = (np.concatenate(kind) for kind in zip(*doses, strict=True))
    masks = utils.get_demo_truth_masks(utils.read_mhd(str(folder / "ground_truth.mhd")) - 1000.0)
    widths = [utils.get_insert_radius(masks[:, :, n]) for n in range(masks.shape[2])]
    for number, width in enumerate(widths):
        mask = masks[:, :, number]
        kinds = [
            without_mean(odd(utils.get_roi_from_truth_mask(mask, of, nx=2 * max(widths))))
            for of in (present, absent)
        ]
        size = kinds[0].shape[1]
        for name, theirs, channels in (
            (
                "Laguerre-Gauss",
                Observers.LG_CHO(*kinds, 2 / 3 * width, LAGUERRE_GAUSS),
                laguerre_gauss(size, 2 / 3 * width, LAGUERRE_GAUSS),
            ),
            (
                "difference of Gaussians",
                Observers.DOG_CHO(*kinds, "sparse"),
                difference_of_gaussians(size),
            ),
        ):
            print(
                f"insert {number + 1}, {name}, {len(kinds[0])} images of a kind: d' of the toolbox "
                f"{both_ways(theirs, *kinds):.6f}, of the project "
                f"{detectability_index(*(k.reshape(len(k), -1) @ channels.T for k in kinds)):.6f}"
            )


def both_ways(observer: object, present: Array, absent: Array) -> float:
    """The toolbox's index, learning on even images and on odd ones in turn."""
    halves = [(absent[half::2], present[half::2]) for half in (0, 1)]
    ways = [(*halves[0], *halves[1]), (*halves[1], *halves[0])]
    return float(np.mean([observer.perform_study(*way)["snr"] for way in ways]))


def odd(images: Array) -> Array:
    """Images with a pixel in their middle, where the toolbox's bands are symmetric, too."""
    return images[
        :, : images.shape[1] - 1 + images.shape[1] % 2, : images.shape[2] - 1 + images.shape[2] % 2
    ]


def without_mean(images: Array) -> Array:
    return images - images.mean(axis=(1, 2), keepdims=True)


if __name__ == "__main__":
    main()
