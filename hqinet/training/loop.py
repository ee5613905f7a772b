"""The training loop: from a recipe and pairs of volumes to the best network by validation.

One loop for one process and for several: under `torch.distributed` every rank takes its share of
each batch by sample number, and rank 0 alone writes and reports. Everything that a step depends on
is in the checkpoint, so a resumed run continues as if it had never stopped; on the CPU, and where
steps and not minutes limit it, bit for bit.
"""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hqinet.devices import DeviceError, bf16_is_faster, pick_device
from hqinet.memory import keep_freed_memory
from hqinet.networks.hqinet import build
from hqinet.samples.batch import Batch, Sample, prepare
from hqinet.samples.feed import Span, open_feed
from hqinet.samples.order import SampleOrder
from hqinet.samples.pairs import VolumePair
from hqinet.training.checkpoint import remove_drafts, save_checkpoint
from hqinet.training.interrupts import StopRequest, TrainingError, TrainingInterruptedError
from hqinet.training.micro_batch import fitting_batch
from hqinet.training.ranks import Ranks
from hqinet.training.recipe import Recipe
from hqinet.training.state import State, Weights, fresh_state, resume
from hqinet.training.step import accumulate, learning_rate
from hqinet.training.validation import summarise, validate

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"
CHECKPOINT_SECONDS = 300.0
"""A checkpoint is written this often, besides one each epoch."""
Image = NDArray[np.float32]


class Observer(Protocol):
    """Is told how training goes; rank 0's alone is called."""

    def on_step(self, step: int, steps: int, metrics: dict[str, float]) -> None:
        """After step `step` of `steps` expected.

        metrics: loss, learning_rate, gradient_norm, samples_per_second.
        """

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """After each epoch and its validation; the dict is also the history's entry."""

    def on_images(self, epoch: int, patient: str, low: Image, restored: Image, full: Image) -> None:
        """The middle judged slice of each validation patient, float32 HU (rows, columns)."""


@dataclass(frozen=True)
class Trained:
    """What a finished run leaves."""

    model: nn.Module
    """The best epoch's network, on the CPU, in evaluation mode."""
    best_epoch: int
    steps: int
    best_checkpoint: Path
    """Read it with `hqinet.training.checkpoint.load_network`."""
    history: list[dict[str, float]]


def train(
    recipe: Recipe,
    training: Sequence[VolumePair],
    validation: Sequence[VolumePair],
    *,
    folder: Path,
    device: str = "auto",
    observer: Observer,
    start: Weights | None = None,
) -> Trained:
    """Train, from `folder`'s checkpoint where there is one, and return the best network.

    start: weights to begin with; None: those that the recipe's seed draws.

    Writes `checkpoint.pt` and `best.pt` into `folder`. Raises TrainingInterruptedError after
    SIGTERM, once the checkpoint is saved; TrainingError where there are no patients, the weights
    are of another network, the checkpoint is of another run, memory does not suffice, or the loss
    is NaN, infinite or exploding.
    """
    started = time.monotonic()
    if not training:
        raise TrainingError("there are no training patients: ingest a cohort, or check the splits")
    training, validation = (_with_doses(recipe, pairs) for pairs in (training, validation))
    if not validation:
        logger.warning("there are no validation patients: the last epoch is kept, unjudged")
    try:
        ranks = Ranks.current(pick_device(device))
    except DeviceError as error:
        raise TrainingError(str(error)) from error
    if ranks.device.type == "cpu":
        keep_freed_memory()
    state = fresh_state(recipe, training, validation, ranks.device, start)
    if ranks.first:
        remove_drafts(folder)
    checkpoint = folder / CHECKPOINT
    if checkpoint.exists():
        resume(state, checkpoint)
        logger.info("resuming %s at step %d", checkpoint, state.step)
    if not state.finished:
        order = SampleOrder(recipe.sampling, training, recipe.seed)
        _settle_numerics(state, order, ranks)
        loop = _Loop(state, order, validation, folder, observer, ranks, started)
        feed = open_feed(training, order, ranks.device)
        # Closed at once: what has been asked for ahead is not read any more.
        with StopRequest() as stop, closing(feed.batches(loop.spans())) as batches:
            loop.run(batches, stop)
    return _trained(state, folder)


def _with_doses(recipe: Recipe, pairs: Sequence[VolumePair]) -> list[VolumePair]:
    """State the dose of each pair, as its noise implies it where nobody has; where it matters."""
    if recipe.model.estimates == "full" and recipe.sampling.dose is None:
        return list(pairs)
    stated = []
    for pair in pairs:
        dose = pair.known_dose()
        if not 0 < dose < 1:
            raise TrainingError(
                f"patient {pair.patient}: a low dose of {dose:g} of the full dose is none; "
                "mend dose_fraction in the cohort file"
            )
        if pair.dose is None:
            logger.info("%s: dose not stated; its noise implies %.2f", pair.patient, dose)
        stated.append(replace(pair, dose=dose))
    return stated


def _trained(state: State, folder: Path) -> Trained:
    best = state.best
    if best is None:
        raise TrainingError(f"{folder / CHECKPOINT} is of a finished run without a best epoch")
    model = build(state.recipe.model, state.recipe.seed)
    model.load_state_dict(best.weights)
    return Trained(model.eval(), best.epoch, state.step, folder / BEST, state.history)


def _settle_numerics(state: State, order: SampleOrder, ranks: Ranks) -> None:
    """Decide once a run how many samples are held at once, and whether bf16 pays."""
    sampling = state.recipe.sampling
    share, remainder = divmod(sampling.batch, ranks.world)
    if remainder:
        raise TrainingError(
            f"a batch of {sampling.batch} cannot be shared evenly by {ranks.world} processes"
        )
    if not state.micro_batch:
        fits = sampling.micro_batch or fitting_batch(state.network, order.crop, share, ranks.device)
        bf16 = state.recipe.precision == "bf16" and bf16_is_faster(ranks.device)
        smallest = ranks.gather([min(fits, share), float(bf16)]).amin(0)
        state.micro_batch, state.bf16 = int(smallest[0]), bool(smallest[1])
    if share % state.micro_batch:
        raise TrainingError(
            f"each of {ranks.world} processes takes {share} samples a step, which is no multiple "
            f"of sampling.micro_batch = {state.micro_batch}"
        )
    logger.info(
        "%d samples a step, %d at once, in %s on %s",
        sampling.batch,
        state.micro_batch,
        "bf16" if state.bf16 else "float32",
        ranks.device,
    )


class _Loop:
    """One attempt at a run: the state that moves, and what stays while it does."""

    def __init__(
        self,
        state: State,
        order: SampleOrder,
        validation: Sequence[VolumePair],
        folder: Path,
        observer: Observer,
        ranks: Ranks,
        started: float,
    ) -> None:
        recipe = state.recipe
        self.state, self.recipe = state, recipe
        self.validation, self.folder, self.observer = validation, folder, observer
        self.ranks = ranks
        self.started = started - state.seconds
        self.network = ranks.wrap(state.network)
        self.share = recipe.sampling.batch // ranks.world
        self.steps_per_epoch, self.steps = recipe.steps(len(order))

    def spans(self) -> Iterator[Span]:
        """Return the sample numbers of every micro-batch that this rank has yet to see."""
        for step in range(self.state.step, self.steps):
            mine = step * self.recipe.sampling.batch + self.ranks.rank * self.share
            for first in range(mine, mine + self.share, self.state.micro_batch):
                yield first, self.state.micro_batch

    def run(self, batches: Iterator[Batch], stop: StopRequest) -> None:
        """Step until the schedule ends, validating every epoch and saving as it goes."""
        state, saved = self.state, self.state.seconds
        samples = _one_ahead(batches, self.recipe, self.ranks.device)
        while not state.finished:
            batch = list(islice(samples, self.share // state.micro_batch))
            asked = self._step(batch, stop)
            over = state.step == self.steps or self._progress() >= 1
            if over or state.step % self.steps_per_epoch == 0:
                self._end_epoch()
                state.finished = over or self._progress() >= 1
            elif not asked and state.seconds - saved < CHECKPOINT_SECONDS:
                continue
            self._save()
            saved = state.seconds
            if asked and not state.finished:
                raise self._interrupted()

    def _interrupted(self) -> TrainingInterruptedError:
        return TrainingInterruptedError(
            f"stopped on request at step {self.state.step} of {self.steps}; "
            f"{self.folder / CHECKPOINT} continues from there"
        )

    def _progress(self) -> float:
        """Return how much of the run is done, by steps or by minutes, whichever is further."""
        done = self.state.step / self.steps
        if self.recipe.schedule.max_minutes is None:
            return done
        limit = 60 * self.recipe.schedule.max_minutes - self.state.validation_seconds
        return max(done, self.state.seconds / limit) if limit > 0 else 1.0

    def _expected_steps(self) -> int:
        """Return how many steps there will be, as far as the pace so far tells."""
        return max(self.state.step, min(self.steps, round(self.state.step / self._progress())))

    def _step(self, samples: list[Sample], stop: StopRequest) -> bool:
        """Take one optimiser step; return whether any rank was asked to stop."""
        state, before = self.state, time.monotonic()
        rate = learning_rate(self.recipe, state.step, self._progress())
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        loss, norm = accumulate(state, self.network, samples, self.ranks)
        seconds = time.monotonic() - self.started
        gathered = self.ranks.gather([loss, norm, float(stop.received), seconds])
        loss, norm = float(gathered[:, 0].mean()), float(gathered[:, 1].max())
        trouble = state.watch.trouble(loss, norm)
        if trouble is not None:
            raise TrainingError(self._no_good(trouble))
        state.optimiser.step()
        state.optimiser.zero_grad(set_to_none=True)
        if state.averaged is not None:
            state.averaged.update_parameters(state.network)
        state.step += 1
        state.seconds = float(gathered[:, 3].max())
        state.epoch_losses.append(loss)
        if self.ranks.first:
            batch = self.recipe.sampling.batch
            metrics = {
                "loss": loss,
                "learning_rate": rate,
                "gradient_norm": norm,
                "samples_per_second": batch / (time.monotonic() - before),
            }
            self.observer.on_step(state.step, self._expected_steps(), metrics)
        return bool(gathered[:, 2].max())

    def _no_good(self, trouble: str) -> str:
        checkpoint = self.folder / CHECKPOINT
        last = (
            f"the last good checkpoint is {checkpoint}"
            if checkpoint.exists()
            else "there is no checkpoint yet"
        )
        return (
            f"recipe {self.recipe.name!r} stopped at step {self.state.step + 1}: {trouble}; "
            f"{last}; try a smaller optimiser.learning_rate or set optimiser.clip"
        )

    def _end_epoch(self) -> None:
        """Validate, remember the best weights, report."""
        state, before = self.state, time.monotonic()
        self._meet()
        state.epoch += 1
        mine = self.validation[self.ranks.rank :: self.ranks.world]
        wanted = self.recipe.schedule.validation_slices
        results = self.ranks.gather_items(
            [
                validate(state.judged, self.recipe.model, pair, self.ranks.device, wanted)
                for pair in mine
            ]
        )
        metrics = {
            "step": float(state.step),
            "train_loss": float(np.mean(state.epoch_losses)),
            # Measured free memory and the machine decide these two, and they change the weights.
            "micro_batch": float(state.micro_batch),
            "bf16": float(state.bf16),
            **summarise(results),
        }
        if math.isnan(metrics.get("val_psnr", 0.0)):
            raise TrainingError(self._no_good("what the network restores is not finite"))
        state.remember_best(metrics.get("val_psnr"))
        state.epoch_losses = []
        spent, seconds = time.monotonic() - before, time.monotonic() - self.started
        times = self.ranks.gather([spent, seconds]).amax(0)
        state.validation_seconds, state.seconds = times.tolist()
        metrics["seconds"] = state.seconds
        state.history.append({"epoch": float(state.epoch), **metrics})
        if self.ranks.first:
            self.observer.on_epoch(state.epoch, metrics)
            for result in results:
                self.observer.on_images(state.epoch, result.patient, *result.images)

    def _meet(self) -> None:
        """Make batch norm's running statistics those of all ranks."""
        self.ranks.average_buffers(self.state.network)
        if self.state.averaged is not None:
            self.ranks.average_buffers(self.state.averaged.module)

    def _save(self) -> None:
        self._meet()
        if self.ranks.first:
            if self.state.best is not None and self.state.best.epoch == self.state.epoch:
                save_checkpoint(self.state.best_content(), self.folder / BEST)
            save_checkpoint(self.state.content(), self.folder / CHECKPOINT)


def _one_ahead(batches: Iterable[Batch], recipe: Recipe, device: torch.device) -> Iterator[Sample]:
    """Prepare each batch while the one before it is being trained on."""
    ready: Sample | None = None
    for batch in batches:
        following = prepare(batch, recipe.sampling, device)
        if ready is not None:
            yield ready
        ready = following
    if ready is not None:
        yield ready
