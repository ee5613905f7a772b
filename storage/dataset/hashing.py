"""Digests of volumes: of a whole one, and of slices, by which a part of one is recognised."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from storage.hounsfield import is_flat

FORMAT = 1
"""Of what a volume's digest is made."""
SIMULATED = "simulated"
"""Attribute of a volume whose low dose was simulated: what it was made with."""
MADE_WITH = ("dose", "seed", "version", "realisations", "detector")
"""Of that attribute: what tells one partner from another, beside the full dose."""
OWN_DIGEST = "pixels"
"""Of that attribute: the digest of the low dose, all realisations, as it was written here."""
SLICE_FINGERPRINTS = 16
"""So many are kept of each dose: enough to find a volume that is a third part of another."""


class VolumeHash:
    """SHA-256 over the HU of one dose, slice by slice, and fingerprints of its slices."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._whole = hashlib.sha256(repr(shape).encode())
        self._slices: set[str] = set()

    def add(self, image: np.ndarray) -> None:
        """Take in a slice, int16 HU (rows, columns)."""
        digest = hashlib.sha256(np.ascontiguousarray(image, dtype="<i2")).digest()
        self._whole.update(digest)
        # An image of one value, air beyond the body, says nothing about the person.
        if not is_flat(image):
            self._slices.add(digest.hex()[:16])

    def digest(self) -> str:
        """Of all slices."""
        return self._whole.hexdigest()

    def slice_fingerprints(self) -> list[str]:
        """The smallest digests of slices: two volumes that overlap share some of them."""
        return sorted(self._slices)[:SLICE_FINGERPRINTS]


def dose_digest(shape: tuple[int, int, int], slices: Iterable[np.ndarray]) -> str:
    """The digest of one dose."""
    hasher = VolumeHash(shape)
    for image in slices:
        hasher.add(image)
    return hasher.digest()


def pair_digest(description: Mapping[str, Any], doses: Mapping[str, str]) -> str:
    """The digest of a pair: of its description and of those of both doses.

    A simulated low dose counts by what it was made with and not by its bits: another machine rounds
    some of them otherwise, and has made the same partner.
    """
    made = description.get(SIMULATED)
    if made is not None and OWN_DIGEST in made:
        told = {name: made[name] for name in MADE_WITH if name in made}
        description = {**description, SIMULATED: told}
        doses = {**doses, "low": SIMULATED}
    content = {"format": FORMAT, "description": dict(description), "arrays": dict(doses)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
