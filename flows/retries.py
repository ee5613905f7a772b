"""Which steps of a run that nobody waits for are tried again, and when.

What a disk, a network or a server did not do now it may do in a minute; whatever else went wrong
goes wrong again. A command by hand tells at once.
"""

from typing import TypedDict

import httpx
from prefect import State, Task, runtime
from prefect.client.schemas.objects import TaskRun

from storage.errors import StoreError, UnavailableError

_OF_THE_MOMENT = (StoreError, UnavailableError, OSError, httpx.TransportError)


class Retries(TypedDict):
    """Arguments of a task that is safe to be run again."""

    retries: int
    retry_delay_seconds: list[float]
    retry_condition_fn: object


def is_of_the_moment(_task: Task, _run: TaskRun, state: State) -> bool:
    """Whether a step of a deployment's run failed by what may be over at the next try."""
    try:
        state.result()
    except _OF_THE_MOMENT:
        return bool(runtime.deployment.id)
    except Exception:  # noqa: BLE001 - what it was decides nothing else
        return False
    return False


TRIED_AGAIN: Retries = {
    "retries": 2,
    "retry_delay_seconds": [30, 300],
    "retry_condition_fn": is_of_the_moment,
}
