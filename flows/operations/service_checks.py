"""The doctor's look at services: those of the home, and the servers that are named elsewhere."""

import os
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx

from flows.operations import api, services
from flows.operations.check import TIMEOUT, Check
from flows.settings import Settings

VERSIONS = {"prefect": "/admin/version", "mlflow": "/version"}
"""Where a server says of which version it is."""
APART = 5
"""Seconds that two clocks may differ; a server's own says whole seconds."""


def running(home: Path) -> Check:
    """The services run."""
    known = services.read(home)
    if known is None and (elsewhere := os.environ.get("PREFECT_API_URL")):
        return Check(name="services", found=f"not of this home: PREFECT_API_URL is {elsewhere}")
    if known is None or not known.is_supervised:
        advice = "`hqinet up`, if anything is to happen by itself"
        return Check(name="services", outcome="note", found="down", advice=advice)
    missing = [row.name for row in known.services if not row.runs]
    if missing:
        advice = f"see {home / 'logs'}: the supervisor starts them again"
        return Check(name="services", outcome="failure", found=f"down: {missing}", advice=advice)
    return Check(name="services", found="up")


def servers(home: Path) -> Check:
    """Prefect's and MLflow's servers answer, are of our versions, and have this machine's time."""
    there = _servers(home)
    known = services.read(home)
    ours = {known.prefect, known.mlflow} if known is not None and known.is_up else set()
    wrong = {name: found for name, url in there.items() if (found := _problem(name, url))}
    advice = [
        "`hqinet down` and `hqinet up`"
        if there[name] in ours
        else f"{name}: start it, of our version and with the time by NTP, or name another one"
        for name in wrong
    ]
    return Check(
        name="servers",
        outcome="failure" if wrong else "ok",
        found="; ".join(wrong.values()) or ", ".join(there) or "none",
        advice="; ".join(dict.fromkeys(advice)),
    )


def _servers(home: Path) -> dict[str, str]:
    """URL of each server that is asked from here, by the package that it is of."""
    known = services.read(home)
    ours = known if known is not None and known.is_up else None
    tracking = Settings().tracking_uri
    urls = {
        "prefect": os.environ.get("PREFECT_API_URL", ours.prefect if ours else ""),
        "mlflow": tracking if "://" in tracking else ours.mlflow if ours else "",
    }
    return {name: url for name, url in urls.items() if url.startswith("http")}


def _problem(name: str, url: str) -> str | None:
    """What is wrong with a server."""
    try:
        with _client(name, url.rstrip("/")) as client:
            answer = client.get(VERSIONS[name]).raise_for_status()
    except httpx.HTTPStatusError as error:
        return f"{name} at {url} answers {error.response.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"{name} at {url} does not answer: {error}"
    theirs, ours = answer.text.strip().strip('"'), version(name)
    if theirs != ours:
        return f"{name} at {url} is {theirs}, here {ours}"
    said = parsedate_to_datetime(answer.headers["Date"]) if "Date" in answer.headers else None
    if said is None:
        return None
    apart = abs((datetime.now(UTC) - said.astimezone(UTC)).total_seconds())
    return (
        f"the clock of {name} at {url} is {apart:.0f} s off this machine's"
        if apart > APART
        else None
    )


def _client(name: str, url: str) -> httpx.Client:
    """A client with the password of its own server."""
    if name == "prefect":
        return api.client(url, TIMEOUT)
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    return httpx.Client(base_url=url, timeout=TIMEOUT, auth=(user, password) if user else None)


def chain(home: Path) -> Check:
    """All of prefect.yaml is on Prefect's server, with its schedules and triggers at work."""
    # They import Prefect, which takes seconds.
    from flows.operations.deployment import TAG, declared  # noqa: PLC0415

    ours = {"deployments": {"tags": {"all_": [TAG]}}}
    there = _asked_of_prefect(home, "/deployments/filter", ours)
    if there is None:
        return Check(name="chain", outcome="note", found="no server of Prefect's answers")
    automations = _asked_of_prefect(home, "/automations/filter", {}) or []
    known = services.read(home)
    if not there and (known is None or not known.is_up):
        return Check(name="chain", outcome="note", found="nothing is deployed there")
    broken = {row["name"]: why for row in declared() if (why := _broken(row, there, automations))}
    return Check(
        name="chain",
        outcome="failure" if broken else "ok",
        found="; ".join(f"{name}: {why}" for name, why in broken.items()) or "all deployed",
        advice="turn it on on Prefect's page, or start the services again, which deploys all"
        if broken
        else "",
    )


def _asked_of_prefect(home: Path, path: str, body: dict[str, Any]) -> list[dict[str, Any]] | None:
    """What Prefect's server says, the one that is named or that of the services; None without."""
    url = _servers(home).get("prefect")
    if url is None:
        return None
    try:
        with api.client(url, TIMEOUT) as client:
            return client.post(path, json=body).raise_for_status().json()
    except httpx.TransportError:
        # The check of the servers says so.
        return None


def _broken(
    row: dict[str, Any], there: list[dict[str, Any]], automations: list[dict[str, Any]]
) -> str | None:
    """Why a deployment of the file would not do its work."""
    found = next((one for one in there if one["name"] == row["name"]), None)
    if found is None:
        return "not deployed"
    if found["paused"] or not all(schedule["active"] for schedule in found["schedules"]):
        return "paused"
    ours = [
        one["enabled"] and any(do.get("deployment_id") == found["id"] for do in one["actions"])
        for one in automations
    ]
    return "its trigger is off or gone" if sum(ours) < len(row.get("triggers", [])) else None


def operator(home: Path) -> Check:
    """Somebody is told of what ends badly."""
    if not Settings().services.webhook:
        advice = "set HQINET_SERVICES__WEBHOOK before `hqinet up`"
        return Check(name="operator", outcome="note", found="nobody is told", advice=advice)
    rows = _asked_of_prefect(home, "/automations/filter", {})
    if rows is None:
        found = "no server of Prefect's answers"
        return Check(name="operator", outcome="note", found=found, advice="")
    # It imports Prefect, which takes seconds.
    from flows.operations.automations import notifications  # noqa: PLC0415

    wanted = {automation.name for automation in notifications(UUID(int=0))}
    missing = sorted(wanted - {row["name"] for row in rows if row["enabled"]})
    return Check(
        name="operator",
        outcome="failure" if missing else "ok",
        found=f"no automation {missing}" if missing else f"{len(wanted)} automations tell of it",
        advice="`hqinet automations apply`" if missing else "",
    )
