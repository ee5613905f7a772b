"""How much waits in each work pool, asked of Prefect's server."""

from datetime import UTC, datetime, timedelta
from http.client import NOT_FOUND, UNAUTHORIZED
from typing import Any

import httpx

from flows.operations import api
from flows.operations.services import POOLS

TIMEOUT = 10
DAY = timedelta(hours=24)
BAD = ["Failed", "Crashed", "TimedOut", "Refused", "Quarantined"]


def look(prefect: str) -> list[dict[str, Any]]:
    """A row a pool: runs that run, wait, are late, ended badly within a day; workers online.

    prefect: URL of the API; a pool that its server does not have has no row. Raises httpx.HTTPError
    if it does not answer, or not to us.
    """
    with api.client(prefect, TIMEOUT) as client:
        return [_row(client, pool) for pool in POOLS if _is_there(client, pool)]


def unseen(error: httpx.HTTPError) -> str:
    """Why the queue is not shown, and what to do."""
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == UNAUTHORIZED:
        return f"the queue is not shown: Prefect asks for a password: set {api.CLIENTS}"
    return f"the queue is not shown: Prefect does not answer ({error}): look at its log"


def bad_ends(prefect: str, since: datetime) -> list[str]:
    """Runs of deployments that refused something or could not be done, one line each.

    prefect: URL of the API. Raises httpx.HTTPError if it does not answer.
    """
    filters = {
        "state": {"name": {"any_": BAD}},
        "end_time": {"after_": since.isoformat()},
        "deployment_id": {"is_null_": False},
    }
    body = {"flow_runs": filters, "sort": "END_TIME_DESC"}
    with api.client(prefect, TIMEOUT) as client:
        runs = client.post("/flow_runs/filter", json=body).raise_for_status().json()
    return [f"{run['name']}: {run['state_name']}: {run['state']['message']}" for run in runs]


def _is_there(client: httpx.Client, pool: str) -> bool:
    return client.get(f"/work_pools/{pool}").status_code != NOT_FOUND


def _row(client: httpx.Client, pool: str) -> dict[str, Any]:
    def count(**filters: Any) -> int:  # noqa: ANN401 - Prefect's filters
        body = {"work_pools": {"name": {"any_": [pool]}}, "flow_runs": filters}
        return client.post("/flow_runs/count", json=body).raise_for_status().json()

    now = datetime.now(UTC)
    due = {"expected_start_time": {"before_": now.isoformat()}}
    recent = {"end_time": {"after_": (now - DAY).isoformat()}}
    workers = client.post(f"/work_pools/{pool}/workers/filter", json={}).raise_for_status().json()
    return {
        "pool": pool,
        "running": count(state={"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}),
        "waiting": count(state={"type": {"any_": ["SCHEDULED"]}}, **due),
        "late": count(state={"name": {"any_": ["Late"]}}),
        "bad ends in 24 h": count(state={"name": {"any_": BAD}}, **recent),
        "workers": sum(row["status"] == "ONLINE" for row in workers),
    }
