"""How far long work is: bars on the terminal; of training, an artifact on Prefect's page, too."""

from contextlib import suppress
from time import monotonic
from typing import Self
from uuid import UUID

from prefect.artifacts import update_progress_artifact
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_UPDATES = 5.0
"""Of the artifact, each of which is a request to the server."""
SECONDS_TO_JUDGE_PACE = 20.0
LONG_HOURS = 0.5
"""Of training that its user is told of."""


def announce(line: str) -> None:
    """Say how far a long piece of work is: on standard error, which may be a file."""
    Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)


class Display:
    """Shows progress; silent on the terminal where standard error is none."""

    def __init__(self, artifact: UUID) -> None:
        """`artifact`: the progress artifact to keep up to date."""
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps  {task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=1, numbers="")
        self._artifact = artifact
        self._updated = monotonic()
        self._first: tuple[int, float] | None = None
        self._announced = False

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, step: int, steps: int, metrics: dict[str, float]) -> None:
        """Take note of a step."""
        numbers = f"loss {metrics['loss']:.4g}  {metrics['samples_per_second']:.0f} samples/s"
        self._bar.update(self._task, completed=step, total=steps, numbers=numbers)
        now = monotonic()
        first, started = self._first = self._first or (step, now)
        if not self._announced and now - started > SECONDS_TO_JUDGE_PACE:
            self._announced = True
            self._announce((now - started) / (step - first), steps - step)
        if step >= steps or now - self._updated > SECONDS_BETWEEN_UPDATES:
            # Observation never ends a training; the next one may do.
            with suppress(Exception):
                update_progress_artifact(artifact_id=self._artifact, progress=100 * step / steps)
            self._updated = now

    def _announce(self, seconds_a_step: float, left: int) -> None:
        """Say it where training will take long: better known now than tomorrow."""
        hours = seconds_a_step * left / 3600
        if hours >= LONG_HOURS:
            announce(
                f"training: {left} more steps take about {hours:.1f} hours at this pace; "
                "`--set schedule.max_minutes=N` ends it sooner, Ctrl-C saves it"
            )
