from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from hqinet.report.key_slices import LEAST_SLICES, LEVELS, choose_slices, encode, keep_views
from hqinet.samples.pairs import VolumePair


def decoded(png: bytes) -> np.ndarray:
    return LEVELS[np.asarray(Image.open(BytesIO(png)))]


def test_hu_survive_within_a_step():
    hu = np.linspace(-1024, 3071, 64 * 64).reshape(64, 64)
    error = np.abs(decoded(encode(hu)) - hu)
    assert error[hu < -200].max() <= 4.01
    assert error[(hu > -200) & (hu < 300)].max() <= 2.01
    assert error.max() < 60


def test_reduction_averages_and_crops_odd_sizes():
    hu = np.kron([[0, 100], [40, -60]], np.ones((4, 4))).astype(np.int16)
    assert decoded(encode(np.pad(hu, ((0, 1), (0, 1))), 4)).tolist() == [[0, 100], [40, -60]]


def test_slices_are_chosen_by_number():
    quality = np.array([3.0, np.nan, 9.0, 1.0, 5.0, np.inf])
    assert choose_slices(quality) == {2: "best", 3: "worst", 4: "median"}
    assert choose_slices(np.array([np.nan])) == {}
    assert choose_slices(np.array([1.0]))[0] in ("best", "worst", "median")


@pytest.mark.parametrize("budget", [20_000, 60_000, 10_000_000])
def test_views_hold_the_budget_and_the_labelled_slices(budget):
    random = np.random.default_rng(0)
    stack = random.normal(0, 30, (30, 64, 64)).astype(np.int16)
    pair = VolumePair("P", "chest", stack, stack)
    views = keep_views(pair, stack, {4: "best", 21: "worst"}, budget)
    assert [view.index for view in views] == sorted({view.index for view in views})
    assert {view.label for view in views} == {"", "best", "worst"}
    size = sum(len(png) for view in views for png in view.images.values())
    assert size < budget * 1.3
    assert len(views) >= LEAST_SLICES
