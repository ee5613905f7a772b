"""The numbered stream of samples: the same whoever asks, fair as the recipe says, in place."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from hqinet.intensity import denormalise, normalise
from hqinet.noise import noise_level
from hqinet.samples.sampling import (
    Batch,
    SampleOrder,
    VolumePair,
    prepare,
    window_slices,
)
from hqinet.training.recipe import SamplingRecipe

CPU = torch.device("cpu")


def pairs(*shapes: tuple[int, int, int]) -> list[VolumePair]:
    return [
        VolumePair(f"P{i}", "chest", np.zeros(shape, np.int16), np.zeros(shape, np.int16))
        for i, shape in enumerate(shapes)
    ]


def order(*shapes: tuple[int, int, int], seed: int = 0, **recipe: Any) -> SampleOrder:
    return SampleOrder(SamplingRecipe(**{"batch": 8, **recipe}), pairs(*shapes), seed)


def test_windows_repeat_the_edge_slice() -> None:
    assert [window_slices(i, 3) for i in range(3)] == [(0, 0, 1), (0, 1, 2), (1, 2, 2)]
    assert window_slices(0, 1) == (0, 0, 0)


@given(
    first=st.integers(0, 10**7),
    skip=st.integers(0, 40),
    count=st.integers(1, 20),
    balance=st.sampled_from(["slices", "patients"]),
    per_slice=st.sampled_from([1, 4, 32]),
)
def test_a_sample_depends_on_its_number_alone(
    first: int, skip: int, count: int, balance: str, per_slice: int
) -> None:
    recipe = {"patch": 16, "balance": balance, "patches_per_slice": per_slice, "flips": True}
    shapes = [(5, 40, 30), (9, 20, 20)]
    long = order(*shapes, **recipe).draw(first, skip + count)
    assert long[skip:] == order(*shapes, **recipe).draw(first + skip, count)


def test_another_seed_is_another_stream() -> None:
    one, other = (order((50, 64, 64), patch=16, seed=seed).draw(0, 50) for seed in (0, 1))
    assert sum(a.middle == b.middle for a, b in zip(one, other, strict=True)) < 10


def test_slices_balance_shows_every_slice_once_a_pass_and_shuffles() -> None:
    stream = order((3, 16, 16), (7, 16, 16))
    assert len(stream) == 10
    passes = [[(d.pair, d.middle) for d in stream.draw(10 * i, 10)] for i in range(4)]
    everything = [(0, i) for i in range(3)] + [(1, i) for i in range(7)]
    assert all(sorted(each) == everything for each in passes)
    assert len({tuple(each) for each in passes}) == 4


def test_patients_balance_shows_every_patient_alike_and_every_slice() -> None:
    stream = order((2, 16, 16), (40, 16, 16), balance="patients")
    drawn = stream.draw(0, 800)
    assert Counter(d.pair for d in drawn) == {0: 400, 1: 400}
    assert {d.middle for d in drawn if d.pair == 1} == set(range(40))


def test_a_window_comes_again_some_batches_later_until_its_patches_are_cut() -> None:
    stream = order((30, 64, 64), (30, 64, 64), patch=16, patches_per_slice=20, balance="patients")
    assert stream.windows_held == 64
    drawn = stream.draw(0, 8 * 8 * 200)
    seen: dict[int, list[int]] = {}
    for number, draw in enumerate(drawn):
        seen.setdefault(draw.window, []).append(number)
    whole = [numbers for window, numbers in seen.items() if 64 <= window < max(seen) - 128]
    assert len(whole) > 50
    for numbers in whole:
        assert len(numbers) == 20
        assert set(np.diff(numbers)) == {stream.windows_held}
        cut = [drawn[number] for number in numbers]
        assert len({(draw.pair, draw.middle) for draw in cut}) == 1
        assert len({(draw.row, draw.column) for draw in cut}) > 10
    batches = [drawn[i : i + 8] for i in range(0, len(drawn), 8)]
    assert all(len({draw.window for draw in batch}) == 8 for batch in batches)
    # Windows are replaced one after the other: one for every 20 samples, not 64 at once.
    new = np.histogram([numbers[0] for numbers in seen.values()], range(64, 8 * 8 * 200, 64))[0]
    assert max(new) <= 5


@given(number=st.integers(0, 10**6), per_slice=st.integers(1, 40), world=st.sampled_from([2, 4]))
def test_ranks_share_no_window(number: int, per_slice: int, world: int) -> None:
    share = 8 // world
    draws = order((30, 64, 64), patch=16, patches_per_slice=per_slice).draw(8 * number, 8 * 60)
    owners: dict[int, set[int]] = {}
    for i, draw in enumerate(draws):
        owners.setdefault(draw.window, set()).add(i % 8 // share)
    assert all(len(ranks) == 1 for ranks in owners.values())


def test_one_patch_a_slice_is_the_plain_order() -> None:
    assert [draw.window for draw in order((30, 64, 64)).draw(5, 100)] == list(range(5, 105))


def test_crops_lie_inside_and_reach_every_place() -> None:
    drawn = order((4, 18, 20), patch=16).draw(0, 400)
    assert {d.row for d in drawn} == {0, 1, 2}
    assert {d.column for d in drawn} == {0, 1, 2, 3, 4}
    whole = order((4, 18, 20)).draw(0, 50)
    assert {(d.row, d.column) for d in whole} == {(0, 0)}


def test_whole_slices_take_the_largest_matrix_and_small_ones_start_at_zero() -> None:
    stream = order((4, 18, 30), (4, 24, 20))
    assert stream.crop == (24, 30)
    assert {(d.row, d.column) for d in stream.draw(0, 40)} == {(0, 0)}


def test_flips_and_dose_are_drawn_only_where_asked_for() -> None:
    plain = order((4, 18, 30)).draw(0, 100)
    assert {(d.flip_rows, d.flip_columns, d.dose, d.white) for d in plain} == {
        (False, False, 1.0, 0.0)
    }
    varied = order((4, 18, 30), flips=True, dose=(0.5, 1.5), white=0.8, patch=16).draw(0, 400)
    assert len({(d.flip_rows, d.flip_columns) for d in varied}) == 4
    doses = np.array([d.dose for d in varied])
    assert doses.min() >= 0.5
    assert doses.max() <= 1.5
    assert abs(doses.mean() - 1) < 0.05
    shares = np.array([d.white for d in varied])
    assert shares.min() < 0.02
    assert 0.7 < shares.max() <= 0.8
    assert abs(np.median(shares) - 0.2) < 0.05


def batch(n: int = 4) -> Batch:
    random = np.random.default_rng(0)
    full = torch.from_numpy(random.integers(-1000, 1000, (n, 3, 5, 6)).astype(np.int16))
    low = full + torch.from_numpy(random.integers(-50, 50, full.shape).astype(np.int16))
    return Batch(
        low,
        full,
        noise=torch.tensor([[50.0, 30.0]] * n),
        dose=torch.ones(n),
        white=torch.zeros(n),
        flips=torch.zeros(n, 2, dtype=torch.bool),
    )


def test_prepare_gives_normalised_windows_and_the_middle_full_slice() -> None:
    raw = batch()
    windows, full, noise = prepare(raw, CPU)
    torch.testing.assert_close(windows, normalise(raw.low.float()), rtol=0, atol=1e-6)
    torch.testing.assert_close(full, normalise(raw.full[:, 1:2].float()))
    torch.testing.assert_close(noise, torch.full((4,), 50 / 4095))


def test_prepare_mirrors_low_and_full_alike_and_each_sample_on_its_own() -> None:
    raw = batch()
    flips = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    windows, full, _ = prepare(raw._replace(flips=flips), CPU)
    plain_windows, plain_full, _ = prepare(raw, CPU)
    for i, axes in enumerate([[], [1], [2], [1, 2]]):
        assert torch.equal(windows[i], plain_windows[i].flip(axes))
        assert torch.equal(full[i], plain_full[i].flip(axes))


def test_prepare_varies_the_dose_and_its_noise_level() -> None:
    raw = batch()
    dose = torch.tensor([0.0, 0.5, 1.0, 1.5])
    windows, _, noise = prepare(raw._replace(dose=dose), CPU)
    low, full = normalise(raw.low.float()), normalise(raw.full.float())
    expected = full + dose.view(-1, 1, 1, 1) * (low - full)
    torch.testing.assert_close(windows, expected, rtol=0, atol=1e-6)
    # 50^2 = 30^2 + 40^2: the added noise is 40 HU.
    expected_noise = (30**2 + (40 * dose) ** 2).sqrt() / 4095
    torch.testing.assert_close(noise, expected_noise)


def soft_noise() -> Batch:
    """Two samples of nothing but noise as a soft kernel correlates it; none in the first slice."""
    full = torch.zeros(2, 3, 64, 64, dtype=torch.int16)
    noise = np.random.default_rng(0).normal(0, 100, full.shape)
    noise = torch.from_numpy(gaussian_filter(noise, (0, 0, 1, 1)).round().astype(np.int16))
    noise[:, 0] = 0
    level = torch.stack([noise_level(noise[:, 1]), torch.zeros(2)], dim=1)
    return Batch(noise, full, level, torch.ones(2), torch.zeros(2), torch.zeros(2, 2).bool())


def test_prepare_whitens_the_added_noise_and_its_level_follows() -> None:
    raw = soft_noise()
    windows, restored, level = prepare(raw._replace(white=torch.tensor([0.0, 1.0])), CPU)
    added = denormalise(windows)
    torch.testing.assert_close(added[0], raw.low[0].float(), rtol=0, atol=1e-2)
    assert torch.equal(restored, normalise(raw.full[:, 1:2].float()))
    torch.testing.assert_close(added[1].std(), raw.low[1].float().std(), rtol=0.01, atol=0)
    assert neighbours(added[0, 1]) > 0.5
    assert abs(neighbours(added[1, 1])) < 0.1
    torch.testing.assert_close(level * 4095, noise_level(added[:, 1]), rtol=0.1, atol=0)


def test_prepare_changes_dose_and_texture_at_once() -> None:
    raw = soft_noise()
    half = torch.tensor([0.5, 0.5])
    windows, _, level = prepare(raw._replace(white=half, dose=half), CPU)
    added = denormalise(windows)[:, 1]
    torch.testing.assert_close(added.std(), 0.5 * raw.low[:, 1].float().std(), rtol=0.05, atol=0)
    softness = neighbours(raw.low[0, 1].float())
    assert neighbours(added[0]) == pytest.approx(softness / 2, abs=0.08)
    torch.testing.assert_close(level * 4095, noise_level(added), rtol=0.2, atol=0)


def test_noise_of_a_slice_that_is_filled_up_is_not_whitened() -> None:
    stream = order((4, 40, 40), (4, 30, 40), patch=32, white=1.0)
    assert {draw.pair for draw in stream.draw(0, 40) if draw.white == 0} == {1}


def neighbours(noise: torch.Tensor) -> float:
    """Correlation of pixels side by side."""
    return float(np.corrcoef(noise[..., 1:].ravel(), noise[..., :-1].ravel())[0, 1])


def test_pairs_of_other_shapes_are_refused_naming_the_patient() -> None:
    with pytest.raises(ValueError, match=r"patient P9: low dose is \(2, 4, 4\) and full .*\(3,"):
        VolumePair("P9", "head", np.zeros((2, 4, 4), np.int16), np.zeros((3, 4, 4), np.int16))
