"""What became of each series, from its association to its destination: HOME/journal, by month.

A JSON object a line, and in every line of a series the SeriesInstanceUID that its scanner gave it.
UIDs, numbers, AE titles and words of ours: no name of a person, and no path, which may hold one.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

FOLDER = "journal"
PART = " (perhaps in part)"
_UID = re.compile(r"[0-9.]{1,64}")
"""What cannot be a name: scanners send UIDs that are not quite valid, too."""
Step = Literal[
    "received",
    "restored",
    "done before",
    "refused",
    "quarantined",
    "left aside",
    "queued",
    "sent",
    "not sent",
    "given up",
]
logger = logging.getLogger("hqinet.journal")


def note(home: Path, series: str, step: Step, **facts: str | float | None) -> None:
    """Append a line; that it cannot be written ends nothing.

    series: SeriesInstanceUID of the source; of what is no UID nothing is written.
    """
    if not _UID.fullmatch(series):
        return
    now = datetime.now(UTC)
    line = {"time": now.isoformat(timespec="milliseconds"), "series": series}
    file = home / FOLDER / f"{now:%Y-%m}.jsonl"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Several processes write here: a short line that is appended at once stays whole.
        with file.open("a") as out:
            out.write(json.dumps(line | {"step": step} | facts) + "\n")
    except OSError as error:
        logger.warning("%s: %s", file, error)


def refusals(home: Path, since: datetime) -> dict[str, int]:
    """Of the series that were refused or quarantined since a time: how many for which code."""
    found: Counter[str] = Counter()
    for said in _lines(home):
        if said["step"] in {"refused", "quarantined"} and _time(said) >= since:
            found[said.get("code") or "unknown"] += 1
    return dict(found.most_common())


def _time(said: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(said["time"])


def _lines(home: Path) -> Iterator[dict[str, Any]]:
    for file in sorted((home / FOLDER).glob("*.jsonl")):
        for line in file.read_text().splitlines():
            # A line that a power cut left half written says nothing.
            with suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict) and {"step", "time"} <= said.keys():
                    yield said


def destinations(home: Path) -> dict[str, set[str]]:
    """Where each derived series was sent, by its SeriesInstanceUID.

    Of a sending that broke off, images may have arrived: it is listed as `NAME (perhaps in part)`.
    """
    found: dict[str, set[str]] = {}
    for said in _lines(home):
        part = {"sent": "", "not sent": PART}.get(said["step"])
        if part is not None:
            found.setdefault(said["derived"], set()).add(said["destination"] + part)
    # What was sent in the end is there as a whole.
    return {series: names - {name + PART for name in names} for series, names in found.items()}
