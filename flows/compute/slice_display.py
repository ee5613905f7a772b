"""How far a restoration is, on the terminal."""

from time import monotonic
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class SliceDisplay:
    """Shows how many slices are restored, how many a second, and how long the rest will take.

    A bar on a terminal; elsewhere the same stands behind each announced line.
    """

    def __init__(self, slices: int) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("restoring"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} slices  {task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("restoring", total=slices, rate="")
        self._done, self._left, self._started = 0, slices, monotonic()
        self.is_seen = console.is_terminal
        """Whether a person sees it: elsewhere it stands in a log."""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, slices: int) -> None:
        """Take note of slices that were restored."""
        self._done += slices
        self._left -= slices
        self._bar.update(self._task, advance=slices, rate=f"{self.rate:.1f} slices/s")

    def leave_out(self, slices: int) -> None:
        """Take note of slices that need no restoring."""
        self._left -= slices
        self._bar.update(self._task, total=self._done + self._left)

    @property
    def rate(self) -> float:
        """Slices a second so far."""
        return self._done / max(monotonic() - self._started, 1e-3)

    def announce(self, line: str) -> None:
        """Say what became of a series, and how long the others will take."""
        if self._done and self._left > 0:
            line += f"; {self.rate:.1f} slices/s, {self._left / self.rate:.0f} s left"
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
