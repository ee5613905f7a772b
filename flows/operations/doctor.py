"""Looks an installation over: a line each, with what to do about what is wrong.

Long, for it is a list: each check is a function by itself, in the order in which they are shown.
"""

import importlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import httpx
from packaging.requirements import Requirement
from pydantic import BaseModel

from flows import stores
from flows.errors import FlowError
from flows.operations import api, services
from flows.operations import home as homes
from flows.operations.destinations import SendError, read_destinations
from flows.operations.outbox import Outbox
from flows.operations.sender import reach
from flows.settings import Settings
from hqinet.devices import pick_device
from hqinet.errors import HqinetError
from storage.dataset import upkeep
from storage.errors import StorageError
from storage.models.versions import CHAMPION

LEAST_SPACE = 10 * 2**30
"""Bytes: less is soon full of one cohort's volumes and a training's checkpoints."""
DECODERS = {
    "JPEG 2000": "openjpeg",
    "RLE": "rle",
    "JPEG-LS": "jpeg_ls",
    "JPEG lossless": "gdcm",
}
"""Of compressed pixels: what is decoded, and the module that does it."""
VERSIONS = {"prefect": "/admin/version", "mlflow": "/version"}
"""Where a server says of which version it is."""
APART = 5
"""Seconds that two clocks may differ; a server's own says whole seconds."""
TIMEOUT = 10


class Check(BaseModel):
    """What was found, and what to do where it is wrong."""

    name: str
    outcome: Literal["ok", "note", "failure"] = "ok"
    found: str
    advice: str = ""


def examine(home: Path) -> list[Check]:
    """All checks; one that breaks is a failure, and keeps no other from being made."""
    checks: dict[str, Callable[[Path], Check]] = {
        "packages": packages,
        "decoders": decoders,
        "device": device,
        "home": writable,
        "space": space,
        "telemetry": telemetry,
        "dataset": dataset,
        "models": models,
        "workers": workers,
        "services": running,
        "servers": servers,
        "chain": chain,
        "operator": operator,
        "outbox": outbox,
    }
    return [_checked(name, check, home) for name, check in checks.items()]


def _checked(name: str, check: Callable[[Path], Check], home: Path) -> Check:
    try:
        return check(home)
    except (FlowError, StorageError, HqinetError, OSError) as error:
        return Check(name=name, outcome="failure", found=str(error), advice="see what it says")
    except Exception as error:  # noqa: BLE001 - a look must not end in a traceback
        found = f"{type(error).__name__}: {error}"
        return Check(name=name, outcome="failure", found=found, advice="look into the log")


def packages(_home: Path) -> Check:
    """Every dependency is there at a version in its range: newer ones install, and do not work."""
    wrong = []
    for text in requires("hqinet") or []:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            there = version(wanted.name)
        except PackageNotFoundError:
            there = "none"
        if there == "none" or not wanted.specifier.contains(there, prereleases=True):
            wrong.append(f"{wanted.name} {there}, expected {wanted.specifier}")
    return Check(
        name="packages",
        outcome="failure" if wrong else "ok",
        found="; ".join(wrong)
        or f"Python {platform.python_version()}, torch {version('torch')}; all in their ranges",
        advice="`pip install -c constraints.txt --editable .`" if wrong else "",
    )


def decoders(_home: Path) -> Check:
    """Every compression of CT can be decoded."""
    missing = [what for what, module in DECODERS.items() if not _is_there(module)]
    return Check(
        name="decoders",
        outcome="failure" if missing else "ok",
        found=f"no decoder of {', '.join(missing)}" if missing else ", ".join(DECODERS),
        advice="`pip install -c constraints.txt --editable .`" if missing else "",
    )


def _is_there(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def device(_home: Path) -> Check:
    """What trains and restores."""
    found = pick_device(Settings().train.device)
    slow = found.type == "cpu"
    return Check(
        name="device",
        outcome="note" if slow else "ok",
        found=str(found),
        advice="`fast` and `paper` want a GPU: install a CUDA build of torch" if slow else "",
    )


def writable(home: Path) -> Check:
    """The home is there and can be written."""
    homes.require(home)
    with tempfile.TemporaryFile(dir=home):
        return Check(name="home", found=str(home))


def space(home: Path) -> Check:
    """The home's disk has room."""
    free = shutil.disk_usage(home).free
    little = free < LEAST_SPACE
    return Check(
        name="space",
        outcome="failure" if little else "ok",
        found=f"{free / 2**30:.0f} GiB free",
        advice="`hqinet dataset gc`, or a larger disk" if little else "",
    )


def telemetry(_home: Path) -> Check:
    """Nothing is sent to anybody's statistics."""
    off = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    on = [f"{name}={os.environ.get(name)}" for name in off if os.environ.get(name) != off[name]]
    return Check(
        name="telemetry",
        outcome="failure" if on else "ok",
        found=", ".join(on) or "off",
        advice="unset these variables: the home turns it off" if on else "",
    )


def dataset(_home: Path) -> Check:
    """The dataset opens, and the volumes of its latest commit are whole."""
    there = stores.dataset()
    if not there.catalog.exists():
        return Check(name="dataset", outcome="note", found="none", advice="`hqinet ingest SOURCE`")
    found = upkeep.verify(there.snapshot())
    if found.problems:
        first = found.problems[0]
        return Check(
            name="dataset",
            outcome="failure",
            found=f"commit {found.commit}: {len(found.problems)} of {found.volumes} volumes are "
            f"damaged, the first of {first.patient}: {first.problem}",
            advice="ingest its delivery again, which writes it anew",
        )
    return Check(name="dataset", found=f"commit {found.commit}, {found.volumes} volumes whole")


def models(_home: Path) -> Check:
    """The registry answers; who is champion."""
    versions = stores.versions()
    champion = next((row.version for row in versions if CHAMPION in row.aliases), None)
    if champion is None:
        found = f"{len(versions)} versions, no champion"
        advice = "`hqinet denoise` uses the starter until one is promoted"
        return Check(name="models", outcome="note", found=found, advice=advice)
    return Check(name="models", found=f"{len(versions)} versions, champion {champion}")


def workers(_home: Path) -> Check:
    """The Dask scheduler that the settings name answers."""
    where = Settings().cluster.where
    if "://" not in where:
        return Check(name="workers", found=where)
    from distributed import Client  # noqa: PLC0415 - takes a second, and is rarely asked

    try:
        with Client(where, timeout=TIMEOUT) as client:
            count = len(client.scheduler_info()["workers"])
    except (OSError, ValueError):
        return Check(
            name="workers",
            outcome="failure",
            found=f"no Dask scheduler answers at {where}",
            advice="start one (`dask scheduler`), or set HQINET_CLUSTER__WHERE=local",
        )
    return Check(
        name="workers",
        outcome="ok" if count else "failure",
        found=f"{where}: {count} workers",
        advice="" if count else f"start some: `dask worker {where}`",
    )


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


def outbox(home: Path) -> Check:
    """Nothing that was to be sent was given up, and its destinations are known and answer."""
    destinations = read_destinations(Settings().send.destinations)
    box = Outbox(home)
    lost = [name for name in Settings().send.restored if name not in destinations]
    lost += [name for name in box.destinations() if name not in {*destinations, *lost}]
    given_up = {name: len(jobs) for name in destinations if (jobs := box.given_up(name))}
    if lost or given_up:
        found = [f"no destination {name!r}" for name in lost]
        found += [f"{number} series for {name} given up" for name, number in given_up.items()]
        advice = (
            "see HQINET_SEND__DESTINATIONS; `outbox/NAME/given-up` names folders: `hqinet send "
        )
        advice += "FOLDER --to NAME`"
        return Check(name="outbox", outcome="failure", found=", ".join(found), advice=advice)
    for name, to in destinations.items():
        try:
            reach(to)
        except SendError as error:
            advice = "what is for it waits in the outbox meanwhile"
            return Check(name="outbox", outcome="failure", found=f"{name}: {error}", advice=advice)
    waiting = {name: len(box.waiting(name)) for name in destinations}
    found = ", ".join(f"{number} for {name}" for name, number in waiting.items())
    return Check(name="outbox", found=found or "no destinations")


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
