"""`hqinet dataset`: look at the versioned dataset and look after it."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import Commit, Home, Json, enter, require
from flows.operations import home as homes

if TYPE_CHECKING:
    from storage.dataset.versions import Snapshot

app = typer.Typer(help="The versioned dataset.", no_args_is_help=True)
splits = typer.Typer(help="Splits as a CSV, to be kept or fixed by hand.", no_args_is_help=True)
app.add_typer(splits, name="splits")

DryRun = Annotated[bool, typer.Option("--dry-run", help="List, remove nothing.")]


@app.command()
def show(commit: Commit = None, home: Home = homes.DEFAULT, as_json: Json = False) -> None:
    """The patients of a commit."""
    require(home)
    enter(home)
    from flows import stores
    from flows.cli import dataset_output, output

    content = shown(stores.dataset().snapshot(commit))
    output.answer(content, dataset_output.print_shown, as_json=as_json)


@app.command()
def log(home: Home = homes.DEFAULT, as_json: Json = False) -> None:
    """The commits, newest first."""
    require(home)
    enter(home)
    from flows import stores
    from flows.cli import dataset_output, output

    content = {"commits": [asdict(commit) for commit in stores.dataset().log()]}
    output.answer(content, dataset_output.print_log, as_json=as_json)


@app.command()
def diff(
    before: Annotated[int, typer.Argument(help="Commit.")],
    after: Annotated[int, typer.Argument(help="Commit.")],
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """What one commit has that another has not, by patient."""
    require(home)
    enter(home)
    from flows import stores
    from flows.cli import dataset_output, output
    from storage.dataset import upkeep

    dataset = stores.dataset()
    found = asdict(upkeep.diff(dataset.snapshot(before), dataset.snapshot(after)))
    output.answer(found, dataset_output.print_difference, as_json=as_json)


@app.command()
def verify(
    commit: Commit = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read and hash every pixel.")] = False,
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Check that every volume of a commit is there and whole; exits 1 if one is not."""
    require(home)
    enter(home)
    from flows import stores
    from flows.cli import dataset_output, output
    from storage.dataset import upkeep

    found = asdict(upkeep.verify(stores.dataset().snapshot(commit), deep=deep))
    output.answer(found | {"deep": deep}, dataset_output.print_verified, as_json=as_json)
    if found["problems"]:
        raise typer.Exit(1)


@app.command()
def rollback(
    commit: Annotated[int, typer.Argument(help="Commit to go back to.")],
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Make a new commit with the rows of an old one; nothing is lost, no split is forgotten."""
    require(home)
    enter(home)
    from flows import stores
    from flows.cli import dataset_output, output
    from storage.dataset import upkeep

    snapshot = upkeep.rollback(stores.dataset(), commit)
    made = {"commit": snapshot.commit, "to": commit}
    output.answer(made, dataset_output.print_rollback, as_json=as_json)


@app.command()
def gc(
    dry_run: DryRun = False,
    grace_hours: Annotated[
        float, typer.Option(min=0, help="Leave alone what is younger: an ingest may need it.")
    ] = 24.0,
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Remove volumes that no commit ever named, and what killed runs left."""
    require(home)
    enter(home)
    from datetime import timedelta

    from flows import stores
    from flows.cli import dataset_output, output
    from storage.dataset.garbage import collect_garbage

    garbage = collect_garbage(
        stores.dataset(),
        stores.scratch(),
        stores.memory(),
        dry_run=dry_run,
        grace=timedelta(hours=grace_hours),
    )
    output.answer(asdict(garbage), dataset_output.print_garbage, as_json=as_json)


@splits.command("export")
def export_splits(
    file: Annotated[Path, typer.Argument(help="CSV to write.")],
    commit: Commit = None,
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Write `patient,split` of every patient that has one."""
    require(home)
    enter(home)
    from flows import stores
    from flows.cli import dataset_output, output
    from storage.dataset import upkeep

    snapshot = stores.dataset().snapshot(commit)
    file.write_text(upkeep.export_splits(snapshot), encoding="utf-8")
    made = {"commit": snapshot.commit, "file": str(file)}
    output.answer(made, dataset_output.print_exported, as_json=as_json)


@splits.command("import")
def import_splits(
    file: Annotated[Path, typer.Argument(help="CSV with the columns patient and split.")],
    reserve: Annotated[
        bool, typer.Option("--reserve", help="Remember splits of patients who are yet to come.")
    ] = False,
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Fix splits by hand; an ID that is not in the dataset is refused, unless reserved."""
    enter(home)
    from flows import stores
    from flows.cli import dataset_output, output
    from storage.dataset import upkeep
    from storage.dataset.splits import SPLITS, read_csv

    dataset = stores.dataset()
    dataset.create()
    snapshot, moves = upkeep.import_splits(dataset, read_csv(file), reserve=reserve)
    of = Counter(row.split for row in snapshot.patients())
    numbers = {split: of[split] for split in SPLITS}
    there = {row.patient for row in snapshot.patients()}
    made = {
        "commit": snapshot.commit,
        "moved": [asdict(move) for move in moves if move.patient in there],
        "reserved": [asdict(move) for move in moves if move.patient not in there],
        "patients": numbers,
    }
    output.answer(made, dataset_output.print_imported, as_json=as_json)


@splits.command("release")
def release_splits(
    patients: Annotated[list[str], typer.Argument(help="IDs whose reserved split is forgotten.")],
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Forget splits that are reserved for patients without data."""
    enter(home)
    from flows import stores
    from flows.cli import dataset_output, output
    from storage.dataset import upkeep

    snapshot, moves = upkeep.release_splits(stores.dataset(), patients)
    released = [{"patient": move.patient, "split": move.before} for move in moves]
    made = {"commit": snapshot.commit, "released": released}
    output.answer(made, dataset_output.print_released, as_json=as_json)


_PATIENT = (
    *("patient", "cohort", "split", "slices", "matrix", "spacing", "anatomy", "dose_fraction"),
    *("vendor", "kernel", "digest", "path", "note", "implied_dose", "simulated"),
)


def shown(snapshot: "Snapshot") -> dict[str, Any]:
    """A commit as `hqinet dataset show --json` prints it."""
    return {
        "commit": snapshot.commit,
        "parent": snapshot.parent,
        "digest": snapshot.digest,
        "identity": snapshot.identity,
        "patients": [
            {name: getattr(row, name) for name in _PATIENT} for row in snapshot.patients()
        ],
        "refused": [row.shown() for row in snapshot.refused],
    }
