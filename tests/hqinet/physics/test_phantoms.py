"""Synthetic patients: their anatomy, and that a seed fixes them."""

import numpy as np
import pytest

from hqinet.physics import phantoms


@pytest.mark.parametrize("anatomy", ["chest", "abdomen"])
def test_phantoms_look_like_their_anatomy(anatomy):
    patient = phantoms.make(anatomy, seed=1, slices=4, size=64)
    assert patient.hu.shape == (4, 64, 64)
    assert patient.hu.dtype == np.float32
    share = {
        "lung": ((patient.hu > -950) & (patient.hu < -700)).mean(),
        "soft": (np.abs(patient.hu - 50) < 80).mean(),
        "bone": (patient.hu > 300).mean(),
    }
    assert share["soft"] > 0.05
    assert share["bone"] > 0.003
    assert (share["lung"] > 0.05) == (anatomy == "chest")


def test_phantoms_repeat_by_seed_and_differ_between_patients():
    one, same, other = (phantoms.make("chest", seed=s, slices=2, size=48).hu for s in (1, 1, 2))
    assert np.array_equal(one, same)
    assert np.abs(one - other).mean() > 5


def test_an_unknown_anatomy_is_named():
    with pytest.raises(ValueError, match="knee"):
        phantoms.make("knee", seed=0, slices=1, size=32)
