"""The daily report: what was restored and refused, how fast, what waits, and whether input drifts.

It stands on Prefect's page as an artifact, and in HOME/day.json, which `hqinet status` reads.
"""

import shutil
from datetime import UTC, datetime, timedelta

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client

from flows import events, lineage, stores
from flows.compute import shadows
from flows.compute.models import Models
from flows.operations import journal, queue
from flows.operations.day import DayReport
from flows.settings import Settings
from hqinet.restoration.drift import Observed, drift
from storage.dicom.index import Entry, SeriesIndex
from storage.models.versions import CHAMPION

KEPT = Observed.model_fields.keys()
"""What of a record drift is judged by."""


@flow(name="daily report")
def report_day(hours: float = 24) -> DayReport:
    """Say what the last day brought; where input has drifted, an event says so, too.

    Args:
        hours: How far back the report looks; drift is judged by the latest series, however old.
    """
    now = datetime.now(UTC)
    since = now - timedelta(hours=hours)
    with get_client(sync_client=True) as client:
        url = str(client.api_url)
    entries = live_entries()
    recent = [entry for entry in entries if entry.record.begun >= since]
    home = Settings().home.absolute()
    report = DayReport(
        written=now,
        hours=hours,
        restored=len(recent),
        seconds_a_slice=seconds_a_slice(recent),
        refused=journal.refusals(home, since),
        bad_ends=queue.bad_ends(url, since),
        unfinished=unfinished(),
        queue=queue.look(url),
        free_gib=round(shutil.disk_usage(home).free / 2**30, 1),
        drift=drifted(_live(stores.restored(), stores.refused())),
    )
    report.write(home)
    create_markdown_artifact(key="day", markdown=report.markdown(), description="the last day")
    if report.drift:
        events.drift_found(report.drift)
        get_run_logger().warning("input drifts: %s", "; ".join(report.drift))
    return report


def unfinished() -> list[str]:
    """What no run takes up by itself, as after an event that nobody heard."""
    dataset = stores.dataset()
    if not dataset.catalog.exists():
        return []
    found, newest = [], next(iter(stores.versions()), None)
    snapshot = dataset.snapshot()
    seen = lineage.patients(newest, lineage.PATIENTS) if newest else set()
    new = [row.patient for row in snapshot.patients("train") if row.patient not in (seen or set())]
    if new:
        found.append(
            f"commit {snapshot.commit}: no version was trained on {len(new)} of its training "
            "patients; unless a run is at it, `hqinet train`"
        )
    if newest is not None and "verdict" not in newest.tags:
        found.append(
            f"model version {newest.version} has no verdict; unless a run is at it, `hqinet "
            f"evaluate --model {newest.version}` and `hqinet promote --model {newest.version}`"
        )
    return found


def live_entries() -> list[Entry]:
    """The series that were restored for use, in the order of their restoration."""
    return _live(stores.restored())


def _live(*indices: SeriesIndex) -> list[Entry]:
    aside = str(shadows.folder())
    entries = [row for index in indices for row in index.entries()]
    live = [row for row in entries if not row.folder.startswith(aside)]
    return sorted(live, key=lambda row: row.record.begun)


def seconds_a_slice(entries: list[Entry]) -> float | None:
    """Of all slices together; None where nothing was restored."""
    slices = sum(entry.record.instances for entry in entries)
    return round(sum(entry.record.seconds for entry in entries) / slices, 3) if slices else None


def drifted(entries: list[Entry]) -> list[str]:
    """What has drifted against what the champion, or without one the starter, was trained on."""
    observed = [
        Observed.model_validate({k: v for k, v in row.record.measured.items() if k in KEPT})
        for row in entries
        if row.record.measured
    ]
    if not observed:
        return []
    envelope = Models(CHAMPION).resolve().envelope
    return [] if envelope is None else drift(observed, envelope)
