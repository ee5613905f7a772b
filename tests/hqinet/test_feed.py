"""Both feeds give the same samples; the place is chosen by memory and said."""

import logging
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from hqinet import feed
from hqinet.feed import (
    FeedError,
    ResidentFeed,
    StreamingFeed,
    WindowReader,
    choose_place,
    free_memory,
    open_feed,
)
from hqinet.noise import noise_level
from hqinet.recipe import SamplingRecipe
from hqinet.sampling import SampleOrder, VolumePair

CPU = torch.device("cpu")
SPANS = [(0, 8), (8, 8), (40, 3)]


def volumes(seed: int, shape: tuple[int, int, int]) -> VolumePair:
    random = np.random.default_rng(seed)
    full = random.integers(-100, 300, shape).astype(np.int16)
    low = (full + random.normal(0, 20 * (seed + 1), shape)).astype(np.int16)
    return VolumePair(f"P{seed}", "chest", low, full)


def pairs() -> list[VolumePair]:
    return [volumes(0, (5, 40, 33)), volumes(1, (1, 20, 50)), volumes(2, (4, 32, 32))]


def order(of: list[VolumePair], **recipe: Any) -> SampleOrder:
    values = {"batch": 8, "patch": 24, "flips": True, "dose": (0.5, 1.0)} | recipe
    return SampleOrder(SamplingRecipe(**values), of, seed=3)


@pytest.mark.parametrize("per_slice", [1, 4])
@pytest.mark.parametrize("patch", [24, None])
def test_resident_and_streamed_samples_are_equal(patch: int | None, per_slice: int) -> None:
    of = pairs()
    stream = order(of, patch=patch, patches_per_slice=per_slice)
    resident = list(ResidentFeed(of, stream, CPU).batches(SPANS))
    reader = WindowReader(of, stream)
    streamed = [reader.read(span) for span in SPANS]
    assert [b.low.shape[0] for b in resident] == [8, 8, 3]
    for one, other in zip(resident, streamed, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def test_the_noise_of_a_slice_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    of = pairs()
    reader = WindowReader(of, order(of, patches_per_slice=1))
    batch = reader.read((0, 64))
    monkeypatch.setattr(feed, "noise_level", None)
    assert torch.equal(reader.read((0, 64)).noise, batch.noise)


def test_spawned_workers_read_zarr_in_order(tmp_path: Path) -> None:
    of = []
    for pair in pairs():
        group = zarr.open_group(tmp_path / pair.patient, mode="w")
        low, full = (
            group.create_array(name, data=data, chunks=(1, *data.shape[1:]))
            for name, data in (("low", pair.low), ("full", pair.full))
        )
        of.append(VolumePair(pair.patient, pair.anatomy, low, full))
    stream = order(of)
    streamed = list(StreamingFeed(of, stream, workers=2).batches(SPANS))
    for one, other in zip(streamed, ResidentFeed(of, stream, CPU).batches(SPANS), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


LEFT_OPEN = """
import sys
import numpy as np
from hqinet.feed import StreamingFeed
from hqinet.recipe import SamplingRecipe
from hqinet.sampling import SampleOrder, VolumePair

if __name__ == "__main__":
    stack = np.zeros((4, 32, 32), np.int16)
    pairs = [VolumePair("P", "chest", stack, stack)]
    order = SampleOrder(SamplingRecipe(batch=4, patch=16), pairs, 0)
    batches = StreamingFeed(pairs, order, workers=1).batches((i, 4) for i in range(10**6))
    next(batches)
    import multiprocessing
    print(multiprocessing.active_children()[0].pid, flush=True)
    if sys.argv[1] == "stop":
        batches.close()
        print("closed", flush=True)
    else:
        sys.stdin.read()
"""


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_workers_end_with_the_feed_and_with_a_killed_parent(how: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(LEFT_OPEN, encoding="utf-8")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, script, how], text=True, **pipes) as process:
        worker = int(process.stdout.readline())
        if how == "stop":
            assert process.stdout.readline() == "closed\n"
            assert process.wait(timeout=30) == 0
            assert process.stderr.read() == ""
        else:
            assert is_running(worker)
            process.kill()
            process.wait(timeout=30)
        for _ in range(100):
            if not is_running(worker):
                break
            time.sleep(0.1)
        assert not is_running(worker)


def test_a_killed_worker_is_said_in_one_line() -> None:
    of = pairs()
    batches = StreamingFeed(of, order(of), workers=1).batches((i, 4) for i in range(10**6))
    next(batches)
    for worker in multiprocessing.active_children():
        worker.kill()
    with pytest.raises(FeedError, match="reads samples was killed"):
        list(batches)


def test_a_sample_is_the_crop_its_draw_names_with_edge_slices_repeated() -> None:
    of = [volumes(1, (3, 30, 40))]
    stream = order(of)
    (batch,) = ResidentFeed(of, stream, CPU).batches([(0, 30)])
    seen = set()
    for i, draw in enumerate(stream.draw(0, 30)):
        rows = slice(draw.row, draw.row + 24)
        columns = slice(draw.column, draw.column + 24)
        for j, z in enumerate((max(draw.middle - 1, 0), draw.middle, min(draw.middle + 1, 2))):
            np.testing.assert_array_equal(batch.low[i, j].numpy(), of[0].low[z, rows, columns])
            np.testing.assert_array_equal(batch.full[i, j].numpy(), of[0].full[z, rows, columns])
        seen.add(draw.middle)
        levels = [noise_level(torch.from_numpy(v[draw.middle : draw.middle + 1]))
                  for v in (of[0].low, of[0].full)]  # fmt: skip
        assert torch.equal(batch.noise[i], torch.cat(levels))
        assert bool(batch.flips[i, 0]) == draw.flip_rows
    assert seen == {0, 1, 2}


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
    held = sum(v.numel() * v.element_size() for v in [*resident.low, *resident.full])
    assert feed.resident_bytes(of, stream.crop) == held


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    unlimited = free_memory(tmp_path)
    assert unlimited > 0
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 200\n")
    assert free_memory(tmp_path) > 10**6
    (tmp_path / "memory.max").write_text("1000\n")
    assert free_memory(tmp_path) == 600
