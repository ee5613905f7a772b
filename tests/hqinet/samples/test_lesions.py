"""Faint lesions in training samples: in both doses alike, and the noise stays what it was."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hqinet.intensity import denormalise
from hqinet.quality.detectability import lesion
from hqinet.samples.batch import Batch, Sample, prepare
from hqinet.samples.lesions import CONTRAST, DIAMETER, EDGE, Lesion, render
from hqinet.samples.order import SampleOrder
from hqinet.samples.pairs import VolumePair
from hqinet.samples.recipe import SamplingRecipe

CPU = torch.device("cpu")
WITH = SamplingRecipe(batch=4, patch=48, lesions=3)
WITHOUT = SamplingRecipe(batch=4, patch=48)
EMPTY = np.zeros((5, 60, 60), np.int16)


def order(recipe: SamplingRecipe) -> SampleOrder:
    return SampleOrder(recipe, [VolumePair("P", "abdomen", EMPTY, EMPTY, 0.25)], seed=1)


def prepared(recipe: SamplingRecipe) -> Sample:
    generator = torch.Generator().manual_seed(0)
    low, full = torch.randint(-100, 100, (2, 4, 3, 48, 48), generator=generator).short()
    draws = order(recipe).draw(0, 4)
    return prepare(Batch(low, full, torch.zeros_like(low), torch.ones(4, 2), draws), recipe, CPU)


def test_lesions_are_in_low_and_full_dose_alike():
    with_lesions, without = prepared(WITH), prepared(WITHOUT)
    added = [
        denormalise(getattr(with_lesions, name)) - denormalise(getattr(without, name))
        for name in ("windows", "full")
    ]
    torch.testing.assert_close(added[0][:, 1:2], added[1], rtol=0, atol=1e-2)
    assert (added[1].abs().amax((1, 2, 3)) > 5).all()
    torch.testing.assert_close(with_lesions.noise, without.noise)


def test_neighbours_hold_as_much_of_a_lesion_as_was_drawn():
    (image,) = render([[Lesion(0.5, 0.5, 10.0, -40.0, neighbours=0.25)]], (40, 40), CPU)
    assert float(image[1, 20, 20]) == pytest.approx(-40, abs=0.1)
    torch.testing.assert_close(image[0], 0.25 * image[1])
    torch.testing.assert_close(image[2], image[0])


def test_a_lesion_is_what_the_observer_is_asked_for():
    ((_, image, _),) = render([[Lesion(0.5, 0.5, 8.0, -30.0, 1.0)]], (41, 41), CPU)
    theirs = lesion(42, 1.0, diameter=8.0, contrast=-30.0, edge=EDGE)[:41, :41]
    np.testing.assert_allclose(image.numpy(), theirs, atol=1e-4)


@given(uniforms=st.lists(st.floats(0, 1, exclude_max=True), min_size=6, max_size=12))
def test_size_and_contrast_stay_within_their_bounds(uniforms: list[float]):
    drawn = Lesion.drawn(uniforms)
    assert DIAMETER[0] <= drawn.diameter <= DIAMETER[1] + 1e-9
    assert CONTRAST[0] <= abs(drawn.contrast) <= CONTRAST[1] + 1e-9
    assert (drawn.contrast < 0) == (uniforms[4] < 0.5)


def test_lesions_depend_on_the_samples_number_alone():
    draws = order(WITH).draw(7, 5)
    assert [draw.lesions for draw in order(WITH).draw(9, 3)] == [x.lesions for x in draws[2:]]
    assert len({lesion for draw in draws for lesion in draw.lesions}) == 15


def test_no_lesion_is_drawn_that_is_not_asked_for():
    assert all(draw.lesions == () for draw in order(WITHOUT).draw(0, 4))
