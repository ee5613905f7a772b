"""What the `hqinet` command prints: one JSON object, or tables for people."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

console = Console()
if not console.is_terminal:
    # A pipe has no width: rows stay on one line each.
    console = Console(width=200)


def print_json(content: Any) -> None:  # noqa: ANN401 - any JSON value
    """The one machine-readable object on standard output."""
    print(json.dumps(content, default=_plain))


def answer(result: Any, show: Callable[[Any], None], *, as_json: bool) -> None:  # noqa: ANN401 - as above
    """Print a command's result: as JSON if that was asked for, else with `show`, for people."""
    if as_json:
        print_json(result)
    else:
        show(result)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; numbers to the right, nothing for None."""
    table = Table(title=escape(title), title_justify="left")
    rows = [list(row) for row in rows]
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float | None) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console.print(table)


def print_line(text: str) -> None:
    """A sentence."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def print_ingest(result: dict[str, Any]) -> None:
    """What an ingest accepted and refused."""
    keys = ("patient", "split", "slices")
    if result["accepted"]:
        print_table("Accepted", keys, ([row[key] for key in keys] for row in result["accepted"]))
    print_refused(result["refused"])
    for patient, note in result["notes"].items():
        print_line(f"{patient}: {note}")
    if not (result["accepted"] or result["refused"] or result["unchanged"]):
        print_line("no CT images were found in the source")
    if result["skipped"]:
        left = "; ".join(
            f"{count} {kind} ({_first(result['skipped_files'][kind], count)})"
            for kind, count in sorted(result["skipped"].items())
        )
        print_line(f"files left aside: {left}")
    if result["changed"]:
        print_line(f"changed since they were last accepted: {', '.join(result['changed'])}")
    print_line(
        f"commit {result['commit']}: {len(result['accepted'])} accepted, "
        f"{len(result['refused'])} refused, {result['unchanged']} unchanged"
    )


def print_calibration(result: dict[str, Any]) -> None:
    """What a scanner was found to be."""
    print_line(
        f"{result['photons']:.3g} photons a ray, electronic noise {result['electronic']:.3g} "
        f"photons squared, kernels: {', '.join(result['kernels']) or 'none has a name'}; "
        f"the fit is off by {result['misfit']:.0%} of the variance"
    )
    print_line(f"detector file: {result['file']}")


def print_training(result: dict[str, Any]) -> None:
    """The run and version of a training."""
    print_line(f"model version {result['model']}: run {result['run']}, commit {result['commit']}")
    if result["steps"] < result["planned"]:
        print_line(
            f"schedule.max_minutes ended training after {result['steps']} of {result['planned']} "
            "steps: a quicker machine, or more minutes, would do better"
        )


def print_evaluation(result: dict[str, Any]) -> None:
    """The patients of an evaluation and where its report lies."""
    print_patients(result["patients"])
    print_line(f"report: {result['report']}/report.html")


def print_verdict(result: dict[str, Any]) -> None:
    """Every rule of a promotion and its outcome."""
    if result["rules"]:
        print_table(
            f"Promotion on commit {result['commit']}",
            ("rule", "outcome", "figure", "required", "reason"),
            (
                [
                    row["rule"],
                    row["outcome"],
                    row["figure"],
                    row["required"],
                    row["reason"],
                ]
                for row in result["rules"]
            ),
        )
    if result["verdict"] == "rolled back":
        print_line(
            f"model version {result['champion']}: rolled back; "
            f"version {result['model']} is champion again"
        )
    else:
        by = f"{result['verdict']} by the policy {result['policy']}"
        print_line(f"model version {result['model']}: {by}")
        if result["shadow"]:
            print_line(f"in the shadow, which decides nothing: {result['shadow']['said']}")


def print_pipeline(result: dict[str, Any]) -> None:
    """What each step of a pipeline did; the patients and the report come last."""
    print_ingest(result["ingest"])
    print_training(result["train"])
    print_verdict(result["promote"])
    print_evaluation(result["evaluate"])


def print_denoised(result: dict[str, Any]) -> None:
    """What became of each series."""
    print_table(
        "Series",
        ("series", "outcome", "slices", "model", "reasons and warnings"),
        (
            [
                row["description"] or row["source"],
                row["outcome"],
                row["slices"],
                row["model"],
                "; ".join([*row["reasons"], *row["warnings"]]),
            ]
            for row in result["series"]
        ),
    )
    print_line(f"derived series: {result['destination']} (NOT FOR DIAGNOSTIC USE)")


def print_models(result: dict[str, Any]) -> None:
    """Model versions, newest first."""
    keys = ("version", "aliases", "run", "recipe", "commit", "verdict", "verdict_policy")
    keys += ("verdict_reasons",)
    print_table(
        "Model versions",
        keys,
        (
            [", ".join(row["aliases"]) if key == "aliases" else row.get(key) for key in keys]
            for row in result["models"]
        ),
    )


def print_refused(refused: Sequence[dict[str, Any]]) -> None:
    """What was refused, and why."""
    if refused:
        codes = Counter(row["code"] for row in refused)
        counts = ", ".join(f"{number} {code}" for code, number in codes.most_common())
        print_line(f"{len(refused)} refused: {counts}")
        keys = ("source", "patient", "code", "reason")
        print_table(
            "Refused",
            (*keys, "files"),
            ([*(row[key] for key in keys), _files(row)] for row in refused),
        )


def _first(names: Sequence[str], count: int) -> str:
    """The first of many names."""
    return ", ".join(names) + (", ..." if count > len(names) else "")


def _files(row: dict[str, Any]) -> str:
    """The first of the files that show what is wrong, below the source."""
    first, *others = [name.removeprefix(f"{row['source']}/") for name in row["files"]] or [""]
    return f"{first} and others" if others else first


def print_patients(rows: Sequence[dict[str, Any]]) -> None:
    """PSNR and SSIM of each patient, low dose against restored."""
    names = ("psnr", "ssim_window")
    print_table(
        "Patients: low dose against restored",
        ["patient", "anatomy", "slices"]
        + [f"{name} {image}" for name in ("PSNR", "SSIM") for image in ("low", "restored")],
        (
            [row["patient"], row["anatomy"], row["slices"]]
            + [row[image][name] for name in names for image in ("low", "restored")]
            for row in rows
        ),
    )


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, tuple | list):
        return " x ".join(f"{part:.4g}" for part in value)
    return escape(str(value))


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tuple):
        return list(value)
    raise TypeError(f"cannot print {type(value).__name__} as JSON")
