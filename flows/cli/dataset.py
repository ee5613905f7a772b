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
    from flows.cli import output

    content = shown(stores.dataset().snapshot(commit))
    if as_json:
        output.print_json(content)
        return
    keys = ("patient", "split", "slices", "matrix", "spacing", "anatomy", "dose_fraction")
    keys += ("cohort", "note")
    title = f"Commit {content['commit']}, digest {content['digest'][:12]}"
    output.print_table(title, keys, ([row[k] for k in keys] for row in content["patients"]))
    output.print_refused(content["refused"])


@app.command()
def log(home: Home = homes.DEFAULT, as_json: Json = False) -> None:
    """The commits, newest first."""
    require(home)
    enter(home)
    from flows import stores
    from flows.cli import output

    commits = [asdict(commit) for commit in stores.dataset().log()]
    if as_json:
        output.print_json({"commits": commits})
        return
    output.print_table(
        "Commits",
        ("commit", "parent", "time", "action", "cohort", "the dataset after it", "code"),
        (
            [
                row["commit"],
                row["parent"],
                f"{row['time']:%Y-%m-%d %H:%M}",
                row["action"],
                row["cohort"],
                ", ".join(f"{name} {count}" for name, count in row["counts"].items()),
                row["code_version"],
            ]
            for row in commits
        ),
    )


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
    from flows.cli import output
    from storage.dataset import upkeep

    dataset = stores.dataset()
    found = asdict(upkeep.diff(dataset.snapshot(before), dataset.snapshot(after)))
    if as_json:
        output.print_json(found)
        return
    found["moved"] = [f"{m['patient']}: {m['before']} -> {m['after']}" for m in found["moved"]]
    kinds = ("added", "removed", "changed", "moved", "refused", "resolved")
    rows = ([kind, len(found[kind]), ", ".join(found[kind])] for kind in kinds)
    output.print_table(f"Commit {before} to {after}", ("what", "number", "which"), rows)


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
    from flows.cli import output
    from storage.dataset import upkeep

    found = asdict(upkeep.verify(stores.dataset().snapshot(commit), deep=deep))
    if as_json:
        output.print_json(found)
    else:
        if found["problems"]:
            rows = (list(row.values()) for row in found["problems"])
            output.print_table("Problems", ("patient", "path", "problem"), rows)
        output.print_line(
            f"commit {found['commit']}: {found['volumes']} volumes, "
            f"{len(found['problems'])} with problems ({'pixels' if deep else 'shapes'} checked)"
        )
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
    from flows.cli import output
    from storage.dataset import upkeep

    snapshot = upkeep.rollback(stores.dataset(), commit)
    if as_json:
        output.print_json({"commit": snapshot.commit, "to": commit})
    else:
        output.print_line(f"commit {snapshot.commit} has the rows of commit {commit}")


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
    from flows.cli import output
    from storage.dataset.garbage import collect_garbage

    garbage = collect_garbage(
        stores.dataset(),
        stores.scratch(),
        stores.memory(),
        dry_run=dry_run,
        grace=timedelta(hours=grace_hours),
    )
    if as_json:
        output.print_json(asdict(garbage))
        return
    for kind in ("volumes", "files", "scratch", "memory"):
        for path in getattr(garbage, kind):
            output.print_line(f"{kind}: {path}")
    word = "removed" if garbage.removed else "would be removed"
    output.print_line(
        f"{len(garbage.volumes)} volumes ({garbage.bytes / 1e6:.1f} MB), {len(garbage.files)} "
        f"files, {len(garbage.scratch)} scratch folders, {len(garbage.memory)} of ingest's memory "
        f"{word}"
    )


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
    from flows.cli import output
    from storage.dataset import upkeep

    snapshot = stores.dataset().snapshot(commit)
    file.write_text(upkeep.export_splits(snapshot), encoding="utf-8")
    if as_json:
        output.print_json({"commit": snapshot.commit, "file": str(file)})
    else:
        output.print_line(f"splits of commit {snapshot.commit}: {file}")


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
    from flows.cli import output
    from storage.dataset import upkeep
    from storage.dataset.splits import SPLITS, read_csv

    dataset = stores.dataset()
    dataset.create()
    snapshot, moves = upkeep.import_splits(dataset, read_csv(file), reserve=reserve)
    of = Counter(row.split for row in snapshot.patients())
    numbers = {split: of[split] for split in SPLITS}
    there = {row.patient for row in snapshot.patients()}
    moved = [move for move in moves if move.patient in there]
    reserved = [move for move in moves if move.patient not in there]
    if as_json:
        output.print_json(
            {
                "commit": snapshot.commit,
                "moved": list(map(asdict, moved)),
                "reserved": list(map(asdict, reserved)),
                "patients": numbers,
            }
        )
    else:
        for move in moves:
            output.print_line(f"{move.patient}: {move.before or 'new'} -> {move.after}")
        now = ", ".join(f"{split} {number}" for split, number in numbers.items())
        output.print_line(
            f"commit {snapshot.commit}: {len(moved)} moved, {len(reserved)} reserved for patients "
            f"who are yet to come; patients now: {now}"
        )


@splits.command("release")
def release_splits(
    patients: Annotated[list[str], typer.Argument(help="IDs whose reserved split is forgotten.")],
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Forget splits that are reserved for patients without data."""
    enter(home)
    from flows import stores
    from flows.cli import output
    from storage.dataset import upkeep

    snapshot, moves = upkeep.release_splits(stores.dataset(), patients)
    if as_json:
        released = [{"patient": move.patient, "split": move.before} for move in moves]
        output.print_json({"commit": snapshot.commit, "released": released})
    else:
        for move in moves:
            output.print_line(f"{move.patient}: {move.before} released")
        output.print_line(f"commit {snapshot.commit}: {len(moves)} released")


_PATIENT = (
    *("patient", "cohort", "split", "slices", "matrix", "spacing", "anatomy", "dose_fraction"),
    *("vendor", "kernel", "digest", "path", "note"),
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
