"""The numbered stream of samples: the same whoever asks, fair as the recipe says, in place."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from hqinet.intensity import denormalise, normalise
from hqinet.noise import noise_level
from hqinet.samples.batch import Batch, prepare
from hqinet.samples.order import SampleOrder
from hqinet.samples.pairs import VolumePair
from hqinet.samples.recipe import SamplingRecipe
from hqinet.samples.slab import window_slices

CPU = torch.device("cpu")
PLAIN = SamplingRecipe(batch=8)


def pairs(*shapes: tuple[int, int, int]) -> list[VolumePair]:
    return [
        VolumePair(f"P{i}", "chest", np.zeros(shape, np.int16), np.zeros(shape, np.int16), 0.25)
        for i, shape in enumerate(shapes)
    ]


def order(*shapes: tuple[int, int, int], seed: int = 0, **recipe: Any) -> SampleOrder:
    return SampleOrder(SamplingRecipe(**{"batch": 8, **recipe}), pairs(*shapes), seed)


def test_beyond_the_edge_stands_the_other_neighbour() -> None:
    assert [window_slices(i, 3) for i in range(3)] == [(1, 0, 1), (0, 1, 2), (1, 2, 1)]
    assert [window_slices(i, 2) for i in range(2)] == [(1, 0, 1), (0, 1, 0)]
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


def test_a_dose_that_nobody_states_is_implied_by_the_noise() -> None:
    random = np.random.default_rng(0)
    full = random.normal(40, 20, (3, 128, 128))
    low = full + random.normal(0, 20 * 3**0.5, full.shape)
    one, other = full.round().astype(np.int16), low.round().astype(np.int16)
    assert VolumePair("P", "chest", other, one).known_dose() == pytest.approx(0.25, rel=0.1)
    assert VolumePair("P", "chest", other, one, 0.1).known_dose() == 0.1
    assert VolumePair("P", "chest", one, one).known_dose() == 0.9


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


def test_nothing_is_drawn_that_is_not_asked_for() -> None:
    drawn = order((30, 18, 30)).draw(0, 100)
    assert not any(d.flip_rows or d.flip_columns for d in drawn)
    assert {(d.mixing, d.dose, d.neighbours, d.zoom, d.kernel) for d in drawn} == {
        ((1.0, 0.0), 0.25, 0, 1.0, 1.0)
    }
    assert all(d.partner == d.middle for d in drawn)


def test_augmentation_is_drawn_within_its_bounds() -> None:
    stream = order(
        (30, 60, 60),
        flips=True,
        patch=16,
        dose=(0.1, 0.4),
        mix_noise=True,
        drop_neighbours=0.5,
        zoom=(0.5, 2.0),
        kernels=(0.25, 4.0),
    )
    drawn = stream.draw(0, 600)
    assert len({(d.flip_rows, d.flip_columns) for d in drawn}) == 4
    for values, low, high in (
        ([d.dose for d in drawn], 0.1, 0.4),
        ([d.zoom for d in drawn], 0.5, 2.0),
        ([d.kernel for d in drawn], 0.25, 4.0),
    ):
        assert low <= min(values) < 1.1 * low
        assert 0.9 * high < max(values) <= high
        # Half of them below the geometric mean.
        assert np.mean(np.array(values) < (low * high) ** 0.5) == pytest.approx(0.5, abs=0.07)
    assert np.mean([d.neighbours == 0 for d in drawn]) == pytest.approx(0.5, abs=0.07)
    assert {d.neighbours for d in drawn} == {0, 1, 2, 3}
    assert {abs(d.partner - d.middle) for d in drawn} == {3, 4, 5}
    assert all(0 <= d.partner < 30 for d in drawn)
    signs = {(d.mixing[0] > 0, d.mixing[1] > 0) for d in drawn}
    assert len(signs) == 4


@given(dose=st.floats(0.05, 0.9))
def test_mixed_noise_has_the_variance_of_the_dose_drawn(dose: float) -> None:
    (drawn,) = order((30, 60, 60), patch=16, dose=(dose, dose), mix_noise=True).draw(3, 1)
    # The pair is of a quarter dose: its added noise has three times the full dose's variance.
    assert 3 * sum(share**2 for share in drawn.mixing) == pytest.approx(1 / dose - 1)


def test_too_short_a_volume_mixes_nothing() -> None:
    drawn = order((3, 60, 60), patch=16, mix_noise=True).draw(0, 20)
    assert {(d.partner - d.middle, d.mixing) for d in drawn} == {(0, (1.0, 0.0))}


def batch(n: int = 4) -> Batch:
    random = np.random.default_rng(0)
    full = torch.from_numpy(random.integers(-1000, 1000, (n, 3, 5, 6)).astype(np.int16))
    low, partner = (
        torch.from_numpy(random.integers(-50, 50, full.shape).astype(np.int16)) for _ in range(2)
    )
    draws = order((30, 5, 6)).draw(0, n)
    return Batch(full + low, full, partner, torch.tensor([[50.0, 30.0]] * n), draws)


def drawn_with(raw: Batch, **changes: Sequence[object]) -> Batch:
    """The batch with some fields of its draws set, one value a sample."""
    draws = [
        replace(draw, **{name: values[i] for name, values in changes.items()})
        for i, draw in enumerate(raw.draws)
    ]
    return raw._replace(draws=draws)


def test_prepare_gives_normalised_windows_and_the_middle_full_slice() -> None:
    raw = batch()
    windows, full, noise, dose = prepare(raw, PLAIN, CPU)
    torch.testing.assert_close(windows, normalise(raw.low.float()), rtol=0, atol=1e-6)
    torch.testing.assert_close(full, normalise(raw.full[:, 1:2].float()))
    torch.testing.assert_close(noise, torch.full((4,), 50 / 4095))
    assert torch.equal(dose, torch.full((4,), 0.25))


def test_prepare_mirrors_low_and_full_alike_and_each_sample_on_its_own() -> None:
    raw = batch()
    mirrored = drawn_with(
        raw, flip_rows=[False, True, False, True], flip_columns=[False, False, True, True]
    )
    windows, full, *_ = prepare(mirrored, PLAIN, CPU)
    plain_windows, plain_full, *_ = prepare(raw, PLAIN, CPU)
    for i, axes in enumerate([[], [1], [2], [1, 2]]):
        assert torch.equal(windows[i], plain_windows[i].flip(axes))
        assert torch.equal(full[i], plain_full[i].flip(axes))


def test_prepare_mixes_noise_and_its_level_follows() -> None:
    raw = batch()
    mixing = [(1.0, 0.0), (0.0, 1.0), (-0.6, 0.8), (1.2, 0.5)]
    windows, full, noise, _ = prepare(drawn_with(raw, mixing=mixing), PLAIN, CPU)
    own, other = torch.tensor(mixing).view(-1, 2, 1, 1, 1).unbind(1)
    expected = raw.full + own * (raw.low - raw.full) + other * raw.partner
    torch.testing.assert_close(windows, normalise(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(full, normalise(raw.full[:, 1:2].float()))
    # 50^2 = 30^2 + 40^2: the added noise is 40 HU.
    added = torch.tensor([40, 40, 40, 40 * 1.3])
    torch.testing.assert_close(noise, (30**2 + added**2).sqrt() / 4095)


def test_prepare_takes_neighbours_away() -> None:
    raw = batch()
    windows, *_ = prepare(drawn_with(raw, neighbours=[0, 1, 2, 3]), PLAIN, CPU)
    low = normalise(raw.low.float())
    for window, slices, of in zip(
        windows, [(0, 1, 2), (1, 1, 1), (0, 1, 0), (2, 1, 2)], low, strict=True
    ):
        torch.testing.assert_close(window, of[list(slices)], rtol=0, atol=1e-6)


def noise_alone(recipe: SamplingRecipe) -> Batch:
    """Three samples of nothing but noise as a soft kernel correlates it."""
    side = SampleOrder(recipe, pairs((30, 200, 200)), 0).crop[0]
    full = torch.zeros(3, 3, side, side, dtype=torch.int16)
    noise = np.random.default_rng(0).normal(0, 300, full.shape)
    low = torch.from_numpy(gaussian_filter(noise, (0, 0, 1, 1)).round().astype(np.int16))
    level = torch.stack([noise_level(low[:, 1]), torch.zeros(3)], dim=1)
    draws = order((30, 200, 200), patch=16).draw(0, 3)
    return Batch(low, full, torch.zeros_like(low), level, draws)


def test_kernels_change_the_texture_and_the_level_follows() -> None:
    recipe = SamplingRecipe(batch=3, patch=64, kernels=(0.25, 4.0))
    raw = drawn_with(noise_alone(recipe), kernel=[0.25, 1.0, 4.0])
    windows, full, level, _ = prepare(raw, recipe, CPU)
    assert windows.shape == (3, 3, 64, 64)
    assert full.shape == (3, 1, 64, 64)
    added = denormalise(windows)[:, 1]
    torch.testing.assert_close(added[1], raw.low[1, 1, 2:-2, 2:-2].float(), rtol=0, atol=1e-2)
    soft, plain, sharp = (neighbours(each) for each in added)
    assert soft > plain + 0.05
    assert sharp < plain - 0.05
    torch.testing.assert_close(level * 4095, noise_level(added), rtol=0.1, atol=0)


def test_zoom_resamples_about_the_middle_and_the_level_follows() -> None:
    recipe = SamplingRecipe(batch=3, patch=64, zoom=(0.5, 2.0))
    raw = drawn_with(noise_alone(recipe), zoom=[0.5, 1.0, 2.0])
    bars = torch.arange(raw.full.shape[-1]).expand_as(raw.full).to(torch.int16)
    windows, full, level, _ = prepare(raw, recipe, CPU)
    added = denormalise(windows)[:, 1]
    fine, plain, coarse = (neighbours(each) for each in added)
    assert fine > plain > coarse
    torch.testing.assert_close(level * 4095, noise_level(added), rtol=0.12, atol=0)
    _, full, *_ = prepare(raw._replace(full=bars, low=bars), recipe, CPU)
    steps = denormalise(full)[:, 0].diff(dim=-1)[..., 8:-8].mean((1, 2))
    torch.testing.assert_close(steps, torch.tensor([0.5, 1.0, 2.0]), rtol=1e-2, atol=0)
    centre = denormalise(full)[:, 0, :, 31:33].mean((1, 2))
    torch.testing.assert_close(
        centre, torch.full((3,), (bars.shape[-1] - 1) / 2), rtol=1e-3, atol=0
    )


def neighbours(noise: torch.Tensor) -> float:
    """Correlation of pixels side by side."""
    return float(np.corrcoef(noise[..., 1:].ravel(), noise[..., :-1].ravel())[0, 1])


def test_pairs_of_other_shapes_are_refused_naming_the_patient() -> None:
    with pytest.raises(ValueError, match=r"patient P9: low dose is \(2, 4, 4\) and full .*\(3,"):
        VolumePair("P9", "head", np.zeros((2, 4, 4), np.int16), np.zeros((3, 4, 4), np.int16))
