"""The loop: resumed equals uninterrupted, ranks equal one process, trouble stops it by name.

In one file, for its tests share one uninterrupted run.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hqinet.physics import phantoms
from hqinet.physics.acquisition import Scan, acquire
from hqinet.samples import feed
from hqinet.samples.pairs import VolumePair
from hqinet.training import loop as training
from hqinet.training import step
from hqinet.training.checkpoint import load_checkpoint, load_network
from hqinet.training.interrupts import TrainingError, TrainingInterruptedError
from hqinet.training.loop import BEST, CHECKPOINT, Trained, train
from hqinet.training.recipe import Recipe, load_recipe


def recipe(**sections: dict[str, Any]) -> Recipe:
    """Two epochs of four steps of a tiny RED-CNN with everything that moves switched on."""
    values: dict[str, dict[str, Any]] = {
        "model": {"network": "redcnn", "channels": 4},
        "loss": {"l1": 1.0, "per_noise": True},
        "optimiser": {"learning_rate": 1e-3, "ema": 0.9, "clip": 1.0},
        "schedule": {"epochs": 2, "steps_per_epoch": 4, "decay": "cosine", "warmup_steps": 2},
        "sampling": {"batch": 4, "patch": 24, "flips": True, "dose": (0.1, 0.5)},
    }
    for name, section in sections.items():
        values[name] = section if "network" in section else values[name] | section
    return Recipe.model_validate({"name": "tiny", "seed": 7, **values})


def patient(name: str, seed: int, shape: tuple[int, int, int] = (4, 32, 28)) -> VolumePair:
    random = np.random.default_rng(seed)
    full = np.cumsum(random.integers(-3, 4, shape), axis=2).astype(np.int16)
    low = (full + random.normal(0, 30, shape)).astype(np.int16)
    return VolumePair(name, "chest", low, full, dose=0.25)


TRAINING = [patient("A", 1), patient("B", 2, (3, 40, 24))]
VALIDATION = [patient("V", 3), patient("W", 4, (2, 26, 30))]


class Watcher:
    """Notes all it is told; calls `at[step]` after that step."""

    def __init__(self, **at: Callable[[], None]) -> None:
        self.at = {int(key.removeprefix("step")): action for key, action in at.items()}
        self.steps: list[tuple[int, int, dict[str, float]]] = []
        self.epochs: list[tuple[int, dict[str, float]]] = []
        self.images: list[tuple[Any, ...]] = []

    def on_step(self, step: int, steps: int, metrics: dict[str, float]) -> None:
        self.steps.append((step, steps, metrics))
        if step in self.at:
            self.at[step]()

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        self.epochs.append((epoch, metrics))

    def on_images(self, epoch: int, patient: str, *images: np.ndarray) -> None:
        self.images.append((epoch, patient, images))


def run(folder: Path, of: Recipe | None = None, watcher: Watcher | None = None) -> Trained:
    return train(
        of or recipe(),
        TRAINING,
        VALIDATION,
        folder=folder,
        device="cpu",
        observer=watcher or Watcher(),
    )


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Killed(BaseException):
    """What a kill without warning looks like from inside: nothing is saved any more."""


def kill() -> None:
    raise Killed


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return run(tmp_path_factory.mktemp("uninterrupted"))


def test_a_network_that_estimates_the_clean_slice_is_judged_at_the_dose(tmp_path: Path) -> None:
    """Against full dose only the share `1 - dose` of what it takes off counts."""
    network = {"network": "hqinet", "width": 0.0625, "norm": "none", "output": "residual"}
    losses = {}
    for estimates in ("full", "clean"):
        watcher = Watcher()
        short = recipe(
            model={**network, "estimates": estimates},
            schedule={"epochs": 1, "steps_per_epoch": 3, "warmup_steps": 0},
            sampling={"dose": (0.4, 0.4)},
        )
        run(tmp_path / estimates, short, watcher)
        losses[estimates] = [metrics for _, _, metrics in watcher.steps]
    one, other = losses["full"], losses["clean"]
    # An untrained residual network returns its input: nothing is taken off, and no share counts.
    assert one[0]["loss"] == pytest.approx(other[0]["loss"])
    assert other[0]["gradient_norm"] == pytest.approx(0.6 * one[0]["gradient_norm"], rel=1e-4)


def test_a_dose_that_is_not_stated_is_implied_and_one_that_is_none_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = replace(TRAINING[0], dose=None)
    with caplog.at_level(logging.INFO, logger="hqinet"):
        train(recipe(), [unknown], [], folder=tmp_path, device="cpu", observer=Watcher())
    assert "A: dose not stated; its noise implies 0." in caplog.text
    whole = replace(TRAINING[0], dose=1.0)
    with pytest.raises(TrainingError, match="patient A: a low dose of 1 of the full dose is none"):
        train(recipe(), [whole], [], folder=tmp_path / "none", device="cpu", observer=Watcher())


def test_training_learns_and_reports(tmp_path: Path) -> None:
    watcher = Watcher()
    longer = recipe(
        schedule={"epochs": 3, "steps_per_epoch": 40}, optimiser={"learning_rate": 1e-2}
    )
    trained = run(tmp_path, longer, watcher)
    assert trained.steps == 120
    assert [step for step, _, _ in watcher.steps] == list(range(1, 121))
    assert watcher.steps[0][1] == 120
    assert set(watcher.steps[0][2]) == {
        "loss",
        "learning_rate",
        "gradient_norm",
        "samples_per_second",
    }
    losses = [metrics["loss"] for _, _, metrics in watcher.steps]
    assert np.mean(losses[-20:]) < 0.95 * np.mean(losses[:5])
    assert [epoch for epoch, _ in watcher.epochs] == [1, 2, 3]
    last = watcher.epochs[-1][1]
    assert last["val_psnr"] > watcher.epochs[0][1]["val_psnr"]
    assert last["val_gain_worst"] == min(last["val_gain.V"], last["val_gain.W"])
    assert trained.history == [{"epoch": e, **metrics} for e, metrics in watcher.epochs]
    assert {(epoch, name) for epoch, name, _ in watcher.images} == {
        (epoch, name) for epoch in (1, 2, 3) for name in "VW"
    }
    low, restored, full = watcher.images[0][2]
    np.testing.assert_array_equal(low, VALIDATION[0].low[2])
    np.testing.assert_array_equal(full, VALIDATION[0].full[2])
    assert restored.dtype == np.float32


def test_the_best_epoch_is_returned_and_saved(tmp_path: Path) -> None:
    """A learning rate that ruins the network again: the best is not the last."""
    ruined = recipe(
        schedule={"epochs": 4, "steps_per_epoch": 30, "decay": "constant"},
        optimiser={"learning_rate": 0.05, "clip": None},
    )
    trained = run(tmp_path, ruined)
    scores = [row["val_psnr"] for row in trained.history]
    assert trained.best_epoch == int(np.argmax(scores)) + 1
    saved, of = load_network(trained.best_checkpoint)
    assert of == ruined
    assert same_weights(saved, trained.model)
    assert not saved.training
    assert not trained.model.training
    from hqinet.training.validation import validate

    results = [validate(saved, of.model, pair, torch.device("cpu"), None) for pair in VALIDATION]
    assert np.mean([r.restored for r in results]) == pytest.approx(max(scores), abs=1e-9)


@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_stopped_by_sigterm_and_resumed_equals_uninterrupted(
    step: int, tmp_path: Path, uninterrupted: Trained
) -> None:
    with pytest.raises(TrainingInterruptedError, match=rf"step {step + 1} of 8; .*continues"):
        run(tmp_path, watcher=Watcher(**{f"step{step}": terminate}))
    watcher = Watcher()
    resumed = run(tmp_path, watcher=watcher)
    # The signal arrives after the stop was asked about in its own step, so one more is taken.
    assert watcher.steps[0][0] == step + 2
    assert same_weights(resumed.model, uninterrupted.model)
    assert without_times(resumed.history) == without_times(uninterrupted.history)
    assert resumed.best_epoch == uninterrupted.best_epoch


@pytest.mark.parametrize("step", [2, 5, 7])
def test_killed_without_warning_and_resumed_equals_uninterrupted(
    step: int, tmp_path: Path, uninterrupted: Trained
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, watcher=Watcher(**{f"step{step}": kill}))
    watcher = Watcher()
    resumed = run(tmp_path, watcher=watcher)
    assert watcher.steps[0][0] == (1 if step < 4 else 5)
    assert same_weights(resumed.model, uninterrupted.model)
    assert without_times(resumed.history) == without_times(uninterrupted.history)


def test_hqinet_with_batch_norm_resumes_exactly_too(tmp_path: Path) -> None:
    small = recipe(
        model={"network": "hqinet", "width": 0.05},
        sampling={"micro_batch": 2},
        schedule={"steps_per_epoch": 2},
    )
    whole = run(tmp_path / "whole", small)
    with pytest.raises(TrainingInterruptedError):
        run(tmp_path / "cut", small, Watcher(step2=terminate))
    assert same_weights(run(tmp_path / "cut", small).model, whole.model)


def test_a_finished_run_is_returned_and_not_trained_again(tmp_path: Path) -> None:
    first, watcher = run(tmp_path), Watcher()
    again = run(tmp_path, watcher=watcher)
    assert watcher.steps == []
    assert same_weights(first.model, again.model)
    assert again.history == first.history


def test_streamed_training_equals_resident_even_when_stopped(
    tmp_path: Path, uninterrupted: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "free_memory", lambda: 0)
    with pytest.raises(TrainingInterruptedError):
        run(tmp_path, recipe(sampling={"micro_batch": 4}), Watcher(step3=terminate))
    streamed = run(tmp_path, recipe(sampling={"micro_batch": 4}))
    for a, b in zip(streamed.model.parameters(), uninterrupted.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_sigterm_handler_is_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run(tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


def test_accumulated_micro_batches_equal_one_batch(tmp_path: Path) -> None:
    one = run(tmp_path / "one", recipe(sampling={"micro_batch": 4}))
    parts = run(tmp_path / "parts", recipe(sampling={"micro_batch": 1}))
    for a, b in zip(one.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_average_of_the_weights_is_what_is_judged(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", recipe(optimiser={"ema": None}))
    averaged = run(tmp_path / "averaged")
    assert not same_weights(plain.model, averaged.model)
    content = load_checkpoint(tmp_path / "averaged" / CHECKPOINT)
    weight = content["best"]["weights"]["encoder.0.weight"]
    if content["best"]["epoch"] == 2:
        assert torch.equal(weight, content["averaged"]["module.encoder.0.weight"])
    assert not torch.equal(weight, content["network"]["encoder.0.weight"])


def test_checkpoint_holds_all_that_moves_and_loads_without_pickle(tmp_path: Path) -> None:
    run(tmp_path)
    content = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert {"network", "averaged", "optimiser", "best", "step", "recipe", "watch"} <= set(content)
    assert content["step"] == 8
    assert content["optimiser"]["state"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [BEST, CHECKPOINT]


def test_schedule_warms_up_and_falls_to_nothing(tmp_path: Path) -> None:
    watcher = Watcher()
    run(tmp_path, watcher=watcher)
    rates = [metrics["learning_rate"] for _, _, metrics in watcher.steps]
    expected = [min((i + 1) / 3, 1) * 1e-3 * (1 + np.cos(np.pi * i / 8)) / 2 for i in range(8)]
    np.testing.assert_allclose(rates, expected)


def test_time_limit_ends_the_run_in_order(tmp_path: Path) -> None:
    endless = recipe(schedule={"epochs": 10_000, "max_minutes": 2 / 60})
    started, watcher = time.monotonic(), Watcher()
    trained = run(tmp_path, endless, watcher)
    assert time.monotonic() - started < 10
    assert 8 < trained.steps < 40_000
    assert trained.history[-1]["step"] == trained.steps
    rates = [metrics["learning_rate"] for _, _, metrics in watcher.steps]
    assert rates[-1] < 0.5 * max(rates)
    assert run(tmp_path, endless).steps == trained.steps


def test_no_validation_patient_keeps_the_last_epoch_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = train(recipe(), TRAINING, [], folder=tmp_path, device="cpu", observer=Watcher())
    assert trained.best_epoch == 2
    assert "no validation patients: the last epoch is kept" in caplog.text
    assert "val_psnr" not in trained.history[0]


def test_no_training_patient_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no training patients: ingest a cohort"):
        train(recipe(), [], VALIDATION, folder=tmp_path, device="cpu", observer=Watcher())


def test_volumes_smaller_than_the_patch_are_trained_on(tmp_path: Path) -> None:
    larger = recipe(sampling={"patch": 48})
    assert run(tmp_path, larger).steps == 8


def test_whole_slices_of_different_matrices_are_trained_on(tmp_path: Path) -> None:
    assert run(tmp_path, recipe(sampling={"patch": None, "dose": None})).steps == 8


def test_nan_stops_naming_step_recipe_and_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = step.restoration_loss
    calls = []

    def poisoned(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return real(*arguments) * (float("nan") if len(calls) == 6 else 1)

    monkeypatch.setattr(step, "restoration_loss", poisoned)
    with pytest.raises(TrainingError, match=r"'tiny' stopped at step 6: the loss is nan") as caught:
        run(tmp_path)
    assert f"last good checkpoint is {tmp_path / CHECKPOINT}" in str(caught.value)
    content = load_checkpoint(tmp_path / CHECKPOINT)
    assert content["step"] == 4
    assert all(w.isfinite().all() for w in content["network"].values())


def test_exploding_loss_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = step.restoration_loss
    calls = []

    def growing(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return real(*arguments) * (1e6 if len(calls) == 30 else 1)

    monkeypatch.setattr(step, "restoration_loss", growing)
    with pytest.raises(TrainingError, match=r"step 30: the loss is .* was usual; there is no"):
        run(tmp_path, recipe(schedule={"steps_per_epoch": 40}))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_out_of_memory_says_which_batch_would_fit(
    error: RuntimeError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> torch.Tensor:
        raise error

    monkeypatch.setattr(step, "restoration_loss", full)
    with pytest.raises(TrainingError, match=r"at step 1 with 4 samples of 24x24 .*micro_batch = 2"):
        run(tmp_path)
    with pytest.raises(TrainingError, match=r"not even one fits; set a smaller sampling\.patch"):
        run(tmp_path, recipe(sampling={"micro_batch": 1}))


def test_another_error_is_not_called_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(step, "restoration_loss", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(tmp_path)


def test_a_checkpoint_from_before_a_key_of_the_recipe_came_is_continued(tmp_path: Path) -> None:
    run(tmp_path)
    content = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    del content["recipe"]["sampling"]["mix_noise"]
    torch.save(content, tmp_path / CHECKPOINT)
    assert run(tmp_path).steps == 8
    with pytest.raises(TrainingError, match=r"another recipe \(sampling.mix_noise: False -> True"):
        run(tmp_path, recipe(sampling={"mix_noise": True}))


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(TrainingError, match=r"another recipe \(optimiser.clip: 1.0 -> 2.0, seed"):
        run(tmp_path, recipe(optimiser={"clip": 2.0}).model_copy(update={"seed": 8}))
    with pytest.raises(TrainingError, match=r"trained on other volumes: .*'A'"):
        train(recipe(), TRAINING[1:], VALIDATION, folder=tmp_path, device="cpu", observer=Watcher())
    (tmp_path / CHECKPOINT).write_bytes(b"half a file")
    with pytest.raises(TrainingError, match=r"checkpoint.pt cannot be read .*delete it"):
        run(tmp_path)


def test_unknown_device_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="device 'gpu' is unknown; use auto, cpu, cuda or mps"):
        train(recipe(), TRAINING, [], folder=tmp_path, device="gpu", observer=Watcher())


def test_checkpoints_are_also_written_by_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Killed):
        run(tmp_path, watcher=Watcher(step3=kill))
    assert load_checkpoint(tmp_path / CHECKPOINT)["step"] == 2


def test_a_network_that_restores_nonsense_is_never_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "hqinet.training.validation.Restorer.forward", lambda _, hu: hu[:, 1:2] * np.inf
    )
    with pytest.raises(TrainingError, match="not finite"):
        run(tmp_path)
    assert not (tmp_path / BEST).exists()


def test_stopped_while_it_streams_it_saves_and_reads_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "choose_place", lambda *_: "stream")
    before = threading.active_count()
    of = recipe(schedule={"epochs": 30})
    stop = Watcher(step3=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrainingInterruptedError, match="continues from there") as caught:
        run(tmp_path, of, stop)
    assert load_checkpoint(tmp_path / CHECKPOINT)["step"] >= 3
    # While the error is still held, as where a command says it.
    assert caught.value
    assert threading.active_count() == before


def test_half_written_checkpoints_of_killed_processes_go(tmp_path: Path) -> None:
    (tmp_path / f".{CHECKPOINT}.{2**22 + 1}").write_bytes(b"PK half")
    run(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [BEST, CHECKPOINT]


def scanned(anatomy: str, seed: int) -> VolumePair:
    """A phantom with noise as filtered back-projection makes it."""
    generator = torch.Generator().manual_seed(seed)
    drawn = phantoms.make(anatomy, seed=seed, slices=6, size=96)
    full, low = (
        acquire(
            torch.from_numpy(drawn.hu),
            pixel=drawn.spacing[1],
            dose=dose,
            scan=Scan(photons=2e4, views=180),
            generator=generator,
        ).numpy()
        for dose in (1.0, 0.1)
    )
    low, full = (hu.round().astype(np.int16) for hu in (low, full))
    return VolumePair(f"{anatomy}{seed}", anatomy, low, full, dose=0.1)


@pytest.fixture(scope="module")
def pairs() -> list[VolumePair]:
    return [scanned(anatomy, seed) for anatomy in ("chest", "abdomen") for seed in (1, 2)]


@pytest.mark.parametrize("seed", [0, 5, 6])
def test_the_demos_network_learns_whatever_its_seed(
    pairs: list[VolumePair], seed: int, tmp_path: Path
) -> None:
    """With these seeds it once stayed at its input, for it could hardly see the noise."""
    of = load_recipe(
        "demo",
        f"seed = {seed}",
        "schedule = {epochs = 1, steps_per_epoch = 80}",
        "sampling = {batch = 8, patch = 48}",
        "optimiser.ema = 0.9",
    )
    watcher = Watcher()
    train(of, pairs[:3], pairs[3:], folder=tmp_path, device="cpu", observer=watcher)
    assert watcher.epochs[-1][1]["val_gain_worst"] > 0.5
