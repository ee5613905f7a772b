"""Two processes at half the batch, which stream, train what one process trains."""

import os
import subprocess
import sys

import pytest
import torch

from hqinet.training.ranks import Ranks

TOLERANCE = 2e-5
"""Largest difference of a weight after eight steps; the sums are taken in another order."""

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
"""Another number of threads sums in another order. Nor are errors absolute ones: on some processors
their signs amplified that to 5e-4."""

SCRIPT = """
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import distributed

from hqinet.samples import feed
from hqinet.training.recipe import Recipe
from hqinet.samples.pairs import VolumePair
from hqinet.training.loop import train


class Quiet:
    def __init__(self):
        self.calls = 0

    def on_step(self, *_):
        self.calls += 1

    def on_epoch(self, *_):
        self.calls += 1

    def on_images(self, *_):
        self.calls += 1


def patient(name, seed):
    random = np.random.default_rng(seed)
    full = np.cumsum(random.integers(-3, 4, (4, 32, 28)), axis=2).astype(np.int16)
    low = (full + random.normal(0, 30, full.shape)).astype(np.int16)
    return VolumePair(name, "chest", low, full)


def main(folder):
    folder = Path(folder)
    recipe = Recipe.model_validate({
        "name": "tiny",
        "model": {"network": "hqinet", "width": 0.05, "norm": "none", "init": "he",
                  "output": "noise_residual"},
        "loss": {"mse": 1.0, "per_noise": True},
        "optimiser": {"learning_rate": 1e-3, "ema": 0.9, "clip": 1.0},
        "schedule": {"epochs": 2, "steps_per_epoch": 4},
        "sampling": {"batch": 8, "micro_batch": 2, "patch": 24, "flips": True,
                     "patches_per_slice": 3, "balance": "patients"},
    })
    observer = Quiet()
    trained = train(recipe, [patient("A", 1), patient("B", 2)], [patient("V", 3), patient("W", 4)],
                    folder=folder, device="cpu", observer=observer)
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    torch.save({"weights": trained.model.state_dict(), "history": trained.history,
                "calls": observer.calls}, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    if "RANK" in os.environ:
        feed.choose_place = lambda *_: "stream"
        distributed.init_process_group("gloo")
    main(sys.argv[1])
    if distributed.is_initialized():
        distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, launcher in (("one", []), ("two", torchrun)):
        (folder / name).mkdir()
        command = [sys.executable, *launcher, str(script), str(folder / name)]
        done = subprocess.run(
            command, env=ONE_THREAD, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return {
        name: torch.load(folder / path)
        for name, path in (
            ("one", "one/rank0.pt"),
            ("first", "two/rank0.pt"),
            ("second", "two/rank1.pt"),
        )
    }


def test_two_ranks_match_one(runs: dict[str, dict]) -> None:
    one, first = runs["one"]["weights"], runs["first"]["weights"]
    worst = max((one[name] - first[name]).abs().max().item() for name in one)
    assert worst < TOLERANCE
    for a, b in zip(runs["one"]["history"], runs["first"]["history"], strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
        assert a["val_psnr"] == pytest.approx(b["val_psnr"], abs=1e-3)
        assert a.keys() == b.keys()


def test_ranks_end_with_the_same_network_and_the_first_alone_reports(
    runs: dict[str, dict],
) -> None:
    first, second = runs["first"], runs["second"]
    assert all(torch.equal(first["weights"][k], second["weights"][k]) for k in first["weights"])
    assert first["calls"] == runs["one"]["calls"]
    assert second["calls"] == 0


def test_training_moved_the_weights(runs: dict[str, dict]) -> None:
    weight = runs["one"]["weights"]["reconstruction.out.weight"]
    assert weight.abs().max() > 1e-3


def test_alone_nothing_is_wrapped_and_all_is_ones_own() -> None:
    alone = Ranks.current(torch.device("cpu"))
    network = torch.nn.Linear(1, 1)
    assert (alone.rank, alone.world, alone.first) == (0, 1, True)
    assert alone.wrap(network) is network
    assert alone.gather([1.0, 2.0]).tolist() == [[1.0, 2.0]]
    assert alone.gather_items(["a"]) == ["a"]
