"""Runs that are dead, silent or never begun, on a real server; heartbeats are sent by hand."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest

from flows.operations import watch as module
from flows.operations.watch import RESTARTS, Watch

SOON = timedelta(seconds=0.2)


@pytest.fixture
def client(prefect_server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=prefect_server, timeout=30) as client:
        yield client


@pytest.fixture
def begin(client) -> Iterator[Callable[..., str]]:
    """Begin a run of a deployment with the tag of ours, or with other tags; returns its id."""
    made = []

    def post(path: str, **body: object) -> dict:
        return client.post(path, json=body).raise_for_status().json()

    def begin(*tags: str, deployed: bool = True, running: bool = True) -> str:
        flow = post("/flows/", name="watched")["id"]
        if deployed:
            deployment = post("/deployments/", name=str(uuid4()), flow_id=flow)["id"]
            later = {"scheduled_time": "2100-01-01T00:00:00Z"}
            state = {"type": "SCHEDULED", "state_details": later}
            path = f"/deployments/{deployment}/create_flow_run"
            run = post(path, tags=tags, state=state)["id"]
        else:
            run = post("/flow_runs/", flow_id=flow, tags=tags)["id"]
        made.append(run)
        for kind in ("PENDING", "RUNNING") if running else ("PENDING",):
            post(f"/flow_runs/{run}/set_state", state={"type": kind}, force=True)
        return run

    yield begin
    for run in made:
        client.delete(f"/flow_runs/{run}")


def beat(client: httpx.Client, run: str) -> None:
    """Send a heartbeat, and wait until the server knows it."""
    event = {
        "event": "prefect.flow-run.heartbeat",
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
        "id": str(uuid4()),
    }
    client.post("/events", json=[event]).raise_for_status()
    known = {"filter": {"id": {"id": [event["id"]]}}, "limit": 1}
    until = time.monotonic() + 20
    while not client.post("/events/filter", json=known).json()["events"]:
        assert time.monotonic() < until
        time.sleep(0.2)


def name_of(client: httpx.Client, run: str) -> str:
    return client.get(f"/flow_runs/{run}").json()["state"]["name"]


def test_a_silent_run_is_crashed_then_started_again_and_at_last_left(client, begin):
    run = begin("hqinet")
    beat(client, run)
    watch = Watch(client, SOON)
    # It has only begun to listen: the heartbeats before may have met no server.
    assert watch.look() == []
    time.sleep(0.5)
    crashed, again = watch.look()
    assert "Crashed: Its heartbeat stopped at" in crashed
    assert "AwaitingRetry: It crashed" in again
    assert name_of(client, run) == "AwaitingRetry"
    for _ in range(RESTARTS):
        for kind in ("RUNNING", "CRASHED"):
            client.post(
                f"/flow_runs/{run}/set_state", json={"state": {"type": kind}, "force": True}
            ).raise_for_status()
        watch.look()
    assert name_of(client, run) == "Crashed"


def test_a_second_attempt_is_not_judged_by_the_heartbeats_of_the_first(client, begin):
    run = begin("hqinet")
    beat(client, run)
    watch = Watch(client, timedelta(seconds=2))
    watch.look()
    time.sleep(2.2)
    for kind in ("CRASHED", "RUNNING"):
        client.post(
            f"/flow_runs/{run}/set_state", json={"state": {"type": kind}, "force": True}
        ).raise_for_status()
    assert watch.look() == []
    assert name_of(client, run) == "Running"


def test_a_run_that_was_cancelled_is_not_started_again_unless_somebody_does(client, begin):
    def set_states(*kinds: str) -> None:
        for kind in kinds:
            client.post(
                f"/flow_runs/{run}/set_state", json={"state": {"type": kind}, "force": True}
            ).raise_for_status()

    run = begin("hqinet")
    set_states("CANCELLING", "CRASHED")
    (line,) = Watch(client, SOON).look()
    assert "Cancelled: It was cancelled." in line
    assert name_of(client, run) == "Cancelled"
    set_states("RUNNING", "CRASHED")
    Watch(client, SOON).look()
    assert name_of(client, run) == "AwaitingRetry"


def test_a_run_that_is_told_to_stop_is_started_again_as_often_as_that_happens(client, begin):
    run = begin("hqinet")
    told = "Execution was aborted by a termination signal."
    for _ in range(RESTARTS + 2):
        for state in ({"type": "RUNNING"}, {"type": "CRASHED", "message": told}):
            client.post(
                f"/flow_runs/{run}/set_state", json={"state": state, "force": True}
            ).raise_for_status()
        Watch(client, SOON).look()
        assert name_of(client, run) == "AwaitingRetry"


def test_a_run_that_beats_or_has_just_begun_is_left_alone(client, begin):
    beating, _new = begin("hqinet"), begin("hqinet")
    beat(client, beating)
    watch = Watch(client, timedelta(seconds=60))
    watch.look()
    assert watch.look() == []


def test_a_run_that_died_before_its_first_heartbeat_is_ended_as_soon(client, begin):
    mute, by_hand = begin("hqinet"), begin(deployed=False)
    watch = Watch(client, SOON)
    watch.look()
    time.sleep(0.5)
    crashed, started = watch.look()
    assert mute in crashed
    assert "never sent a heartbeat" in crashed
    assert mute in started
    assert name_of(client, by_hand) == "Running"


def test_a_clock_that_is_set_kills_no_run(client, begin, monkeypatch):
    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(minutes=5)

    beat(client, begin("hqinet"))
    watch = Watch(client, timedelta(seconds=60))
    watch.look()
    monkeypatch.setattr(module, "datetime", Later)
    assert watch.look() == []
    assert watch.look() == []


def test_what_a_command_runs_is_crashed_and_not_started_again(client, begin):
    run = begin(deployed=False)
    beat(client, run)
    watch = Watch(client, SOON)
    watch.look()
    time.sleep(0.5)
    (line,) = watch.look()
    assert "Crashed" in line
    assert name_of(client, run) == "Crashed"


def test_a_run_that_was_taken_and_not_begun_is_given_back(client, begin, monkeypatch):
    run = begin("hqinet", running=False)
    watch = Watch(client, SOON)
    assert watch.look() == []
    monkeypatch.setattr(module, "UNBEGUN", SOON)
    time.sleep(0.3)
    (line,) = watch.look()
    assert run in line
    assert name_of(client, run) == "AwaitingRetry"


def test_silence_counts_anew_when_the_server_was_away(client, begin):
    run = begin("hqinet")
    beat(client, run)
    watch = Watch(client, timedelta(seconds=0.5))
    watch.look()
    time.sleep(0.7)
    watch._client = httpx.Client(base_url="http://127.0.0.1:9", timeout=1)
    with pytest.raises(httpx.HTTPError):
        watch.look()
    watch._client = client
    assert watch.look() == []
    assert name_of(client, run) == "Running"
