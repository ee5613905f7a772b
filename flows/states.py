"""How a run ends that did its work and refused something: in a state of a name of its own.

Its type is Completed, for nothing broke and no retry would help; its name is what an operator
filters runs by, and Prefect calls the event after it (`prefect.flow-run.Refused`).
"""

from typing import TypeVar, cast

from prefect.states import Completed

REFUSED = "Refused"
"""A promotion, a patient of a delivery or a series was refused."""
QUARANTINED = "Quarantined"
"""A restored series was kept from use."""
LONGEST = 500
"""Characters of a message; what is beyond stands in the run's artifact."""

Result = TypeVar("Result")


def ended(result: Result, name: str | None, message: str) -> Result:
    """What a flow returns to end in the state `name`; the plain result where that is None.

    Prefect gives a caller the result, not the state: hence the type.
    """
    if name is None:
        return result
    shown = message if len(message) <= LONGEST else f"{message[: LONGEST - 3]}..."
    return cast("Result", Completed(name=name, message=shown, data=result))
