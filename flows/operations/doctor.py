"""Looks an installation over: a line each, with what to do about what is wrong."""

import importlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from flows import stores
from flows.errors import FlowError
from flows.operations import home as homes
from flows.operations.check import TIMEOUT, Check
from flows.operations.destinations import SendError, read_destinations
from flows.operations.outbox import Outbox
from flows.operations.sender import reach
from flows.operations.service_checks import chain, operator, running, servers
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
