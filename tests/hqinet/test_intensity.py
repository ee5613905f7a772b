import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hqinet.intensity import denormalise, normalise


def test_normalise_maps_the_range_of_ct_to_the_unit_interval_and_back() -> None:
    hu = np.array([-1024, 0, 3071], np.float32)
    np.testing.assert_allclose(normalise(hu), [0, 1024 / 4095, 1])
    np.testing.assert_allclose(denormalise(normalise(hu)), hu, atol=1e-3)


@given(hu=st.floats(-3024, 4000))
def test_denormalise_undoes_normalise(hu: float) -> None:
    there_and_back = denormalise(normalise(torch.tensor(hu, dtype=torch.float64)))
    assert there_and_back.item() == pytest.approx(hu, abs=1e-9)
