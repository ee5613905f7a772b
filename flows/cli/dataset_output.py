"""What the verbs of `hqinet dataset` print for people."""

from typing import Any

from flows.cli.output import print_line, print_refused, print_table


def print_shown(content: dict[str, Any]) -> None:
    """The patients of a commit, and what was refused."""
    keys = ("patient", "split", "slices", "matrix", "spacing", "anatomy", "dose")
    keys += ("cohort", "note")
    title = f"Commit {content['commit']}, digest {content['digest'][:12]}"
    rows = (row | {"dose": _dose(row)} for row in content["patients"])
    print_table(title, keys, ([row[key] for key in keys] for row in rows))
    print_refused(content["refused"])


def _dose(row: dict[str, Any]) -> str:
    """The dose of the low series as stated, as its noise has it, and whether it was simulated."""
    stated, implied = row["dose_fraction"], row["implied_dose"]
    words = ["not stated" if stated is None else f"{stated:g}"]
    words += [] if implied is None else [f"{implied:.2g} by its noise"]
    words += ["simulated dose"] if row["simulated"] else []
    return ", ".join(words)


def print_log(content: dict[str, Any]) -> None:
    """The commits, newest first."""
    print_table(
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
            for row in content["commits"]
        ),
    )


def print_difference(found: dict[str, Any]) -> None:
    """What one commit has that another has not."""
    moved = [f"{m['patient']}: {m['before']} -> {m['after']}" for m in found["moved"]]
    which = found | {"moved": moved}
    kinds = ("added", "removed", "changed", "moved", "refused", "resolved")
    rows = ([kind, len(which[kind]), ", ".join(which[kind])] for kind in kinds)
    title = f"Commit {found['before']} to {found['after']}"
    print_table(title, ("what", "number", "which"), rows)


def print_verified(found: dict[str, Any]) -> None:
    """The volumes that are not whole."""
    problems = found["problems"]
    if problems:
        rows = (list(row.values()) for row in problems)
        print_table("Problems", ("patient", "path", "problem"), rows)
    checked = "pixels" if found["deep"] else "shapes"
    print_line(
        f"commit {found['commit']}: {found['volumes']} volumes, {len(problems)} with problems "
        f"({checked} checked)"
    )


def print_rollback(made: dict[str, Any]) -> None:
    """Which commit has the rows of which."""
    print_line(f"commit {made['commit']} has the rows of commit {made['to']}")


def print_garbage(garbage: dict[str, Any]) -> None:
    """What no commit needs."""
    for kind in ("volumes", "files", "scratch", "memory"):
        for path in garbage[kind]:
            print_line(f"{kind}: {path}")
    word = "removed" if garbage["removed"] else "would be removed"
    print_line(
        f"{len(garbage['volumes'])} volumes ({garbage['bytes'] / 1e6:.1f} MB), "
        f"{len(garbage['files'])} files, {len(garbage['scratch'])} scratch folders, "
        f"{len(garbage['memory'])} of ingest's memory {word}"
    )


def print_exported(made: dict[str, Any]) -> None:
    """Where the splits of a commit were written."""
    print_line(f"splits of commit {made['commit']}: {made['file']}")


def print_imported(made: dict[str, Any]) -> None:
    """Whose split moved, and how many patients each split has now."""
    for move in [*made["moved"], *made["reserved"]]:
        print_line(f"{move['patient']}: {move['before'] or 'new'} -> {move['after']}")
    now = ", ".join(f"{split} {number}" for split, number in made["patients"].items())
    print_line(
        f"commit {made['commit']}: {len(made['moved'])} moved, {len(made['reserved'])} reserved "
        f"for patients who are yet to come; patients now: {now}"
    )


def print_released(made: dict[str, Any]) -> None:
    """Whose reserved split is forgotten."""
    for row in made["released"]:
        print_line(f"{row['patient']}: {row['split']} released")
    print_line(f"commit {made['commit']}: {len(made['released'])} released")
