"""Events: by them the end of one flow starts the next, and an operator learns what happened.

A deployment's trigger sees the name of an event and the labels of its resource, never its payload;
so what a trigger decides on is a label, and what the next flow needs is payload. An event belongs
to the run that emits it and carries the tags of that run: the triggers of `prefect.yaml` ask for
the tag AUTOMATIC, so that what a person starts by hand, or a pipeline does itself, starts nothing.
"""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from prefect.events import emit_event

from flows.operations.outbox import Job
from flows.settings import Settings

if TYPE_CHECKING:
    # It brings torch, which ingest and promote need not wait for.
    from flows.compute.preparation import SeriesOutcome

logger = logging.getLogger("hqinet.events")

AUTOMATIC = "automatic"
"""Tag of the runs whose events start the next flow."""


def emit(name: str, about: str, payload: dict[str, Any], **labels: str) -> None:
    """Emit `hqinet.NAME` about the resource `hqinet.ABOUT`; that it cannot be sent ends no flow."""
    resource = {"prefect.resource.id": f"hqinet.{about}"}
    resource |= {f"hqinet.{label.replace('_', '-')}": value for label, value in labels.items()}
    try:
        emit_event(event=f"hqinet.{name}", resource=resource, payload=payload)
    except Exception as error:  # noqa: BLE001 - the work is done, whoever hears of it
        logger.warning("event hqinet.%s was not sent: %s", name, error)


def dataset_committed(identity: str, commit: int, new_training_patients: int) -> None:
    """A commit was made; only one with new training patients is worth a training."""
    emit(
        "dataset.committed",
        f"dataset.{identity}",
        {"commit": commit, "new_training_patients": new_training_patients},
        new_training_patients=str(new_training_patients),
    )


def model_registered(version: int, run: str, commit: int) -> None:
    """A trained run became a model version."""
    emit("model.registered", _model(version), {"version": version, "run": run, "commit": commit})


def evaluation_written(
    version: int, commit: int, split: str, *, passed: bool, of_champion: bool
) -> None:
    """A model version has a report on a split of a commit; there is nothing to judge a champion by.

    The champion is evaluated again for each challenger, on the commit that both are compared on.

    passed: what the policy says of the report; a promotion may come to another verdict later.
    """
    verdict = "passed" if passed else "refused"
    payload = {"version": version, "commit": commit, "split": split, "verdict": verdict}
    role = "champion" if of_champion else "challenger"
    emit("evaluation.written", _model(version), payload, split=split, role=role)


def champion_changed(
    version: int,
    before: int | None,
    commit: int | None,
    verdict: Literal["promoted", "rolled back"],
) -> None:
    """Another version restores from now on; a rollback asks no commit."""
    payload = {"version": version, "before": before, "commit": commit, "verdict": verdict}
    emit("champion.changed", _model(version), payload)


def drift_found(lines: list[str]) -> None:
    """What scanners send has moved away from what the model was trained on."""
    emit("drift.found", "drift", {"drift": lines})


def sending_given_up(job: Job) -> None:
    """A series lies in the outbox that nobody tries to send any more: somebody has to look.

    What a destination said stays with the job, for it may name a person.
    """
    payload = {"series": job.uids[1], "destination": job.destination, "tries": job.tries}
    emit("sending.given_up", f"outbox.{job.destination}", payload)


def series_ended(outcomes: "Iterable[SeriesOutcome]") -> None:
    """Of each series that was restored, refused or quarantined just now; paths may name persons."""
    for row in outcomes:
        payload = row.model_dump(include={"outcome", "series", "model", "code", "slices"})
        if row.outcome == "restored":
            emit("series.restored", f"series.{row.series}", payload)
        elif row.outcome in {"refused", "quarantined"}:
            emit("series.refused", f"series.{row.series or 'unread'}", payload, code=row.code)


def _model(version: int) -> str:
    return f"model.{Settings().model}.{version}"
