"""The verb that measures a scanner."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import Commit, Home, Json, enter, require
from flows.operations import home as homes


def calibrate(
    file: Annotated[Path, typer.Argument(help="Detector file (TOML) to write.")],
    patients: Annotated[
        list[str] | None,
        typer.Option("--patient", help="Who was scanned alike; repeatable. Default: everybody."),
    ] = None,
    commit: Commit = None,
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Fit a scanner's photons, electronic noise and kernels, for `ingest --detector`."""
    require(home)
    enter(home)
    from flows import stores
    from flows.cli import output
    from flows.compute.calibration import calibrate_on, detector_file
    from storage.stores import files

    snapshot = stores.dataset().snapshot(commit)
    found = calibrate_on(snapshot, patients or [])
    named = ", ".join(patients) if patients else f"all of commit {snapshot.commit}"
    files.write(file, detector_file(found, named).encode())
    result = {
        "file": str(file),
        "photons": found.detector.photons,
        "electronic": found.detector.electronic,
        "kernels": list(found.detector.kernels),
        "misfit": found.misfit,
    }
    output.answer(result, output.print_calibration, as_json=as_json)
