"""Why training stops before its time: a request, or trouble that more steps would not mend."""

import math
import signal
import threading
from types import FrameType
from typing import Self

from hqinet.errors import HqinetError

_EXPLOSION = 1000.0
_SETTLED_AFTER = 20
_MEMORY = 0.9
_CAUGHT = (signal.SIGTERM, signal.SIGINT)


class TrainingError(HqinetError):
    """Training cannot start or go on; the message is one line and says what to do."""


class TrainingInterruptedError(TrainingError):
    """Training was asked to stop and has saved its checkpoint."""


class StopRequest:
    """While entered, SIGTERM and Ctrl-C ask for a stop after the running step instead of ending.

    Signals reach only the main thread; elsewhere nothing is caught.
    """

    def __init__(self) -> None:
        self.received = False
        self._caught = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self._caught:
            self._before = {number: signal.signal(number, self._note) for number in _CAUGHT}
        return self

    def __exit__(self, *_: object) -> None:
        if self._caught:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signal's own
        self.received = True


class LossWatch:
    """Notices a loss that is NaN, infinite, or has left its usual size by a factor of 1000."""

    def __init__(self, usual: float = 0.0, seen: int = 0) -> None:
        self.usual, self.seen = usual, seen

    def trouble(self, loss: float, gradient_norm: float) -> str | None:
        """Return what is wrong with this step, or None and remember its loss."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"the gradient norm is {gradient_norm} at a loss of {loss:.4g}"
        if self.seen >= _SETTLED_AFTER and loss > _EXPLOSION * self.usual:
            return f"the loss is {loss:.4g}, where {self.usual:.4g} was usual"
        self.seen += 1
        share = max(1 - _MEMORY, 1 / self.seen)
        self.usual += share * (loss - self.usual)
        return None
