"""Both feeds give the same samples; the place is chosen by memory and said."""

import logging
import threading
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from hqinet.noise import noise_level
from hqinet.samples import feed
from hqinet.samples.feed import (
    ResidentFeed,
    StreamingFeed,
    choose_place,
    open_feed,
)
from hqinet.samples.order import Draw, SampleOrder
from hqinet.samples.pairs import VolumePair
from hqinet.samples.recipe import SamplingRecipe

CPU = torch.device("cpu")


def volumes(seed: int, shape: tuple[int, int, int]) -> VolumePair:
    random = np.random.default_rng(seed)
    full = random.integers(-100, 300, shape).astype(np.int16)
    low = (full + random.normal(0, 20 * (seed + 1), shape)).astype(np.int16)
    return VolumePair(f"P{seed}", "chest", low, full, dose=0.25)


def pairs() -> list[VolumePair]:
    return [volumes(0, (5, 40, 33)), volumes(1, (1, 20, 50)), volumes(2, (4, 32, 32))]


def order(of: list[VolumePair], **recipe: Any) -> SampleOrder:
    values = {"batch": 8, "patch": 24, "flips": True, "dose": (0.1, 0.5)} | recipe
    return SampleOrder(SamplingRecipe(**values), of, seed=3)


@pytest.mark.parametrize("patch", [24, None])
@pytest.mark.parametrize("per_slice", [1, 12])
@pytest.mark.parametrize("mixed", [True, False])
def test_resident_and_streamed_samples_are_equal(
    patch: int | None, per_slice: int, mixed: bool
) -> None:
    of = pairs()
    stream = order(of, patch=patch, patches_per_slice=per_slice, mix_noise=mixed)
    spans = [(8 * i, 8) for i in range(100)] + [(2000, 3)]
    resident = list(ResidentFeed(of, stream, CPU).batches(spans))
    streamed = list(StreamingFeed(of, stream).batches(spans))
    assert [b.low.shape[0] for b in resident] == [8] * 100 + [3]
    for one, other in zip(resident, streamed, strict=True):
        assert one.draws == other.draws
        for a, b in zip(one[:-1], other[:-1], strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
    assert any(batch.partner.any() for batch in resident) == mixed


class Counted:
    """A stack that counts how often it is read."""

    def __init__(self, hu: np.ndarray) -> None:
        self.hu, self.shape, self.reads = hu, hu.shape, 0

    def __getitem__(self, index: slice) -> np.ndarray:
        self.reads += 1
        return self.hu[index]


@pytest.mark.parametrize("per_slice", [1, 3, 32])
@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 8), (1, 2), (4, 2)])
def test_a_window_is_read_once_and_held_no_longer_than_it_is_used(
    per_slice: int, ranks: int, micro_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = volumes(0, (30, 24, 24))
    of = [VolumePair("P0", "chest", Counted(plain.low), Counted(plain.full), 0.25)]
    stream = order(of, patches_per_slice=per_slice)
    share = 8 // ranks
    spans = [
        (8 * step + share + first, micro_batch)
        for step in range(600)
        for first in range(0, share, micro_batch)
    ]
    held, take = [], feed._Windows.take

    def taken(windows: feed._Windows, draw: Draw) -> feed.Window:
        held.append(len(windows.held))
        return take(windows, draw)

    monkeypatch.setattr(feed._Windows, "take", taken)
    assert len(list(StreamingFeed(of, stream).batches(spans))) == len(spans)
    used = {draw.window for span in spans for draw in stream.draw(*span)}
    assert of[0].low.reads == of[0].full.reads == len(used)
    assert max(held) <= stream.windows_held + feed._WINDOWS_AHEAD + 8
    assert held[-1] == 1


class Lost:
    """A stack whose store does not answer."""

    shape = (30, 24, 24)

    def __getitem__(self, index: slice) -> np.ndarray:
        raise OSError("the store does not answer")


def test_what_reading_raises_ends_the_feed() -> None:
    of = [VolumePair("P0", "chest", Lost(), Lost(), 0.25)]
    batches = StreamingFeed(of, order(of)).batches([(0, 8)])
    with pytest.raises(OSError, match="does not answer"):
        next(batches)


def test_a_feed_that_is_left_early_leaves_no_thread() -> None:
    before = threading.active_count()
    of = pairs()
    batches = StreamingFeed(of, order(of)).batches((8 * i, 8) for i in range(10**6))
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_a_sample_is_the_crop_its_draw_names_with_the_other_neighbour_beyond_the_edge() -> None:
    of = [volumes(1, (3, 30, 40))]
    stream = order(of)
    (batch,) = ResidentFeed(of, stream, CPU).batches([(0, 30)])
    seen = set()
    for i, draw in enumerate(stream.draw(0, 30)):
        rows = slice(draw.row, draw.row + 24)
        columns = slice(draw.column, draw.column + 24)
        for j, z in enumerate([(1, 0, 1), (0, 1, 2), (1, 2, 1)][draw.middle]):
            np.testing.assert_array_equal(batch.low[i, j].numpy(), of[0].low[z, rows, columns])
            np.testing.assert_array_equal(batch.full[i, j].numpy(), of[0].full[z, rows, columns])
        seen.add(draw.middle)
        levels = [noise_level(torch.from_numpy(v[draw.middle : draw.middle + 1]))
                  for v in (of[0].low, of[0].full)]  # fmt: skip
        assert torch.equal(batch.noise[i], torch.cat(levels))
        assert batch.draws[i] == draw
    assert seen == {0, 1, 2}


def test_a_partner_is_the_added_noise_of_its_window_at_the_same_place() -> None:
    of = [volumes(1, (9, 30, 40))]
    stream = order(of, mix_noise=True)
    (batch,) = ResidentFeed(of, stream, CPU).batches([(0, 30)])
    for i, draw in enumerate(stream.draw(0, 30)):
        rows, columns = slice(draw.row, draw.row + 24), slice(draw.column, draw.column + 24)
        added = of[0].low[draw.partner] - of[0].full[draw.partner]
        np.testing.assert_array_equal(batch.partner[i, 1].numpy(), added[rows, columns])


def test_slices_smaller_than_the_patch_are_filled_with_air() -> None:
    of = [volumes(0, (4, 10, 30))]
    (batch,) = ResidentFeed(of, order(of), CPU).batches([(0, 4)])
    assert batch.low.shape == (4, 3, 24, 24)
    for image in (batch.low, batch.full):
        assert (image[:, :, 10:] == -1024).all()
        assert (image[:, :, :10] > -1024).all()


def test_the_place_is_the_fastest_with_room() -> None:
    assert choose_place(10, on_device=10, in_memory=99) == "device"
    assert choose_place(10, on_device=9, in_memory=10) == "memory"
    assert choose_place(10, on_device=9, in_memory=9) == "stream"


@pytest.mark.parametrize(
    ("free", "kind", "said"),
    [(10**9, ResidentFeed, "resident in main memory"), (10**3, StreamingFeed, "streamed")],
)
def test_the_feed_is_chosen_by_free_memory_and_said(
    free: int,
    kind: type,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(feed, "free_memory", lambda: free)
    of = pairs()
    with caplog.at_level(logging.INFO, logger="hqinet"):
        assert isinstance(open_feed(of, order(of), CPU), kind)
    assert said in caplog.text


def test_what_streaming_holds_is_said() -> None:
    stream = order([volumes(0, (4, 64, 48)), volumes(1, (4, 40, 80))], patches_per_slice=32)
    windows = stream.windows_held + feed._WINDOWS_AHEAD
    assert feed.held_bytes(stream) == windows * 2 * torch.zeros(3, 64, 80).short().nbytes


def test_training_draws_among_realisations_and_other_patients_samples_stay() -> None:
    plain = pairs()
    noisier = tuple((plain[0].low + k).astype(np.int16) for k in (1, 2))
    of = [replace(plain[0], repeats=noisier), *plain[1:]]
    batches = [
        next(feed_of(pairs_, order(pairs_)).batches([(0, 200)]))
        for pairs_ in (of, plain)
        for feed_of in (lambda p, o: ResidentFeed(p, o, CPU), StreamingFeed)
    ]
    drawn, streamed, alone, _ = batches
    assert torch.equal(drawn.low, streamed.low)
    assert torch.equal(drawn.noise, streamed.noise)
    counts = np.bincount([d.realisation for d in drawn.draws if d.pair == 0], minlength=3)
    assert counts.min() > 10
    inside = drawn.full > -1024
    for i, draw in enumerate(drawn.draws):
        shift = draw.realisation if draw.pair == 0 else 0
        expected = alone.low[i] + shift
        np.testing.assert_array_equal(drawn.low[i][inside[i]], expected[inside[i]])


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    of = pairs()
    needed = feed.resident_bytes(of, (24, 24))
    monkeypatch.setattr(feed, "free_memory", lambda: int(needed / feed.MEMORY_SHARE * 1.5))
    assert isinstance(open_feed(of, order(of), CPU), ResidentFeed)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert isinstance(open_feed(of, order(of), CPU), StreamingFeed)


def test_stated_need_is_what_the_volumes_take() -> None:
    of = pairs()
    stream = order(of)
    resident = ResidentFeed(of, stream, CPU)
    held = sum(v.numel() * v.element_size() for v in [*chain(*resident.lows), *resident.full])
    assert feed.resident_bytes(of, stream.crop) == held
