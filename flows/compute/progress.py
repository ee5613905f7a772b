"""How far a training run is: a bar on the terminal and a progress artifact on Prefect's page."""

from time import monotonic
from typing import Self
from uuid import UUID

from prefect.artifacts import update_progress_artifact
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_UPDATES = 5.0
"""Of the artifact, each of which is a request to the server."""


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

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, step: int, steps: int, metrics: dict[str, float]) -> None:
        """Take note of a step."""
        numbers = f"loss {metrics['loss']:.4g}  {metrics['samples_per_second']:.0f} samples/s"
        self._bar.update(self._task, completed=step, total=steps, numbers=numbers)
        if step >= steps or monotonic() - self._updated > SECONDS_BETWEEN_UPDATES:
            update_progress_artifact(artifact_id=self._artifact, progress=100 * step / steps)
            self._updated = monotonic()
