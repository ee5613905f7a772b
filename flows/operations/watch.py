"""Watches the runs on Prefect's server (`python -m ...`): what is dead holds no place in a queue.

A machine that loses power tells nobody: its run stays Running, behind a green light, and holds the
only slot of its pool. Runs send heartbeats; one whose heartbeat stopped is called crashed, and a
crashed run of a deployment is started again: a training goes on from its checkpoint.

Not by Prefect's own automations: on SQLite, an event that one trigger acts on and another one
counts meets a locked database, is delivered four times, and is acted on four times (Prefect 3.8.8).
"""

import os
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from flows.operations import api
from flows.operations.log import say
from flows.settings import Settings

TAG = "hqinet"
"""Of the runs of our deployments. What a command runs has none, and no worker to start it again."""
RESTARTS = 2
"""How often a run that crashed is started again."""
STOPPED = "termination signal"
"""In Prefect's message of a run that was told to stop, which may happen any number of times."""
UNBEGUN = timedelta(minutes=5)
"""After which a run that a worker took and did not begin is given back."""
STEP = timedelta(seconds=10)
"""By which the clock may run apart from the machine's own ticks: beyond, it was set, or slept."""
REMEMBERED = timedelta(days=7)
"""How long a run may lie crashed before `hqinet up` starts it again: a weekend, and some more."""
EVERY = 5.0


class Watch:
    """Looks at all runs of a server, time and again."""

    def __init__(self, client: httpx.Client, lost_after: timedelta) -> None:
        """`lost_after`: how long a run may be silent; more than the time between heartbeats."""
        self._client, self._lost_after = client, lost_after
        self._hears_since: datetime | None = None
        self._looked = (datetime.now(UTC), time.monotonic())

    def look(self) -> list[str]:
        """Mark what is dead and start again what crashed; returns a line for each.

        While the server was away, nobody could hear a heartbeat: silence counts from when it
        answers again, and from when the clock was set. Raises httpx.HTTPError if it does not, or is
        busy.
        """
        if self._clock_was_set():
            self._hears_since = None
        try:
            done = [*self._end_the_silent(), *self._give_back_the_unbegun(), *self._restart()]
        except httpx.TransportError:
            self._hears_since = None
            raise
        self._hears_since = self._hears_since or datetime.now(UTC)
        return done

    def _clock_was_set(self) -> bool:
        (then, ticked), self._looked = self._looked, (datetime.now(UTC), time.monotonic())
        ticks = timedelta(seconds=self._looked[1] - ticked)
        return abs(self._looked[0] - then - ticks) > STEP

    def _end_the_silent(self) -> list[str]:
        ended = []
        for run in self._runs({"type": {"any_": ["RUNNING"]}}):
            heard = self._last_heartbeat(run)
            if self._hears_since is None:
                continue
            # What is known may be of an attempt before, and its own not known yet.
            began = _time(run["state"]["timestamp"])
            silent = datetime.now(UTC) - max(heard or began, began, self._hears_since)
            # The first is sent as a run begins; of a run by hand, they may be turned off.
            heeded = heard is not None or _is_deployed(run)
            if heeded and silent > self._lost_after:
                what = (
                    "It never sent a heartbeat"
                    if heard is None
                    else f"Its heartbeat stopped at {heard:%Y-%m-%d %H:%M:%S} UTC"
                )
                message = f"{what}: the machine or process that ran it is gone."
                ended += self._set(run, {"type": "CRASHED", "message": message})
        return ended

    def _give_back_the_unbegun(self) -> list[str]:
        given = []
        for run in self._runs({"type": {"any_": ["PENDING"]}}, {"tags": {"all_": [TAG]}}):
            waited = datetime.now(UTC) - _time(run["state"]["timestamp"])
            if waited > UNBEGUN and _is_deployed(run):
                message = "The worker that took it did not begin it."
                given += self._set(run, _awaiting(message))
        return given

    def _restart(self) -> list[str]:
        started = []
        since = (datetime.now(UTC) - REMEMBERED).isoformat()
        more = {"tags": {"all_": [TAG]}, "end_time": {"after_": since}}
        for run in self._runs({"type": {"any_": ["CRASHED"]}}, more):
            # One that never ran could not be started: it would not be the next time, either.
            if not _is_deployed(run) or not run["run_count"]:
                continue
            states = self._states(run)
            if _was_cancelled(states):
                # Told to stop, its process says that it crashed; nobody wants it again.
                message = "It was cancelled."
                started += self._set(run, {"type": "CANCELLED", "message": message})
            elif _deaths(states) <= RESTARTS:
                started += self._set(run, _awaiting("It crashed, and is started again."))
        return started

    def _states(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        answer = self._client.get("/flow_run_states/", params={"flow_run_id": run["id"]})
        return sorted(answer.raise_for_status().json(), key=lambda state: state["timestamp"])

    def _runs(
        self, state: dict[str, Any], more: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        return self._ask("/flow_runs/filter", flow_runs={"state": state, **(more or {})})

    def _last_heartbeat(self, run: dict[str, Any]) -> datetime | None:
        wanted = {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{run['id']}"]},
            "occurred": {"since": (_time(run["start_time"]) - UNBEGUN).isoformat()},
            "order": "DESC",
        }
        found = self._ask("/events/filter", filter=wanted, limit=1)["events"]
        return _time(found[0]["occurred"]) if found else None

    def _set(self, run: dict[str, Any], state: dict[str, Any]) -> list[str]:
        answer = self._ask(f"/flow_runs/{run['id']}/set_state", state=state)
        taken = "" if answer["status"] == "ACCEPT" else f" ({answer['status'].lower()})"
        name = state.get("name", state["type"].capitalize())
        return [f"{run['name']} ({run['id']}): {name}{taken}: {state['message']}"]

    def _ask(self, path: str, **body: object) -> Any:  # noqa: ANN401 - any JSON value
        return self._client.post(path, json=body).raise_for_status().json()


def _was_cancelled(states: list[dict[str, Any]]) -> bool:
    """Whether somebody cancelled a run's last attempt."""
    last = next((s for s in reversed(states) if s["type"] in {"RUNNING", "CANCELLING"}), None)
    return last is not None and last["type"] == "CANCELLING"


def _deaths(states: list[dict[str, Any]]) -> int:
    """How often a run crashed without being told to stop, as by `hqinet down`."""
    crashes = [state["message"] or "" for state in states if state["type"] == "CRASHED"]
    return sum(STOPPED not in message for message in crashes)


def _is_deployed(run: dict[str, Any]) -> bool:
    """Whether a worker would start it again: a flow within another one comes with that one."""
    return run["deployment_id"] is not None and run["parent_task_run_id"] is None


def _awaiting(message: str) -> dict[str, Any]:
    return {"type": "SCHEDULED", "name": "AwaitingRetry", "message": message}


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def main() -> None:
    """Watch the server of PREFECT_API_URL until told to stop."""
    lost_after = timedelta(seconds=Settings().services.lost_after)
    with api.client(os.environ["PREFECT_API_URL"]) as client:
        watch = Watch(client, lost_after)
        while True:
            try:
                for line in watch.look():
                    say(line)
            except httpx.HTTPError as error:
                say(f"the server does not answer: {type(error).__name__}: {error}")
            time.sleep(EVERY)


if __name__ == "__main__":
    main()
