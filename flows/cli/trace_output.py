"""What the verbs that follow a derived series back print for people."""

from typing import Any

from flows.cli.output import print_line, print_table


def print_explanation(result: dict[str, Any]) -> None:
    """What a file says, then what is known of its model."""
    told = (
        ("derived series", result["series"]),
        ("made of series", result["source_series"]),
        ("image", result["source_instance"]),
        ("which lay at", result["source_path"]),
        ("made at", f"{result['made']} by HQINet {result['software']}"),
        ("model", result["model"]),
        ("derivation", result["description"]),
        *sorted(result["lineage"].items()),
        *sorted((result["verdict"] or {}).items()),
    )
    for name, value in told:
        if value:
            print_line(f"{name}: {value}")
    if result["training_patients"] is not None:
        print_line(f"trained on: {', '.join(result['training_patients'])}")
    for image, figures in (result["evaluation"] or {}).items():
        said = ", ".join(f"{name} {value:g}" for name, value in figures.items())
        print_line(f"test patients, {image}: {said}")
    for warning in result["warnings"] or ():
        print_line(f"outside the training data: {warning}")
    if result["card"]:
        print_line(result["card"])
    elif not result["registered"]:
        print_line("this registry does not know the model: ask where it was made (--home)")
    if result["identity_agrees"] is False:
        print_line("the record beside it names another model than the file itself")


def print_replayed(result: dict[str, Any]) -> None:
    """How each series compares."""
    print_table(
        "Replayed",
        ("series", "outcome", "instances", "differing pixels", "largest HU", "reason"),
        (
            [
                row[key]
                for key in ("folder", "outcome", "instances", "differing", "largest", "reason")
            ]
            for row in result["series"]
        ),
    )


def print_recalled(result: dict[str, Any]) -> None:
    """Where the series of a model lie."""
    print_table(
        f"Series made by model {result['model']}",
        ("series", "made of", "begun", "folder", "there", "sent to"),
        (
            [
                row["series"],
                row["source_series"],
                row["begun"],
                row["folder"],
                "yes" if row["present"] else "no",
                ", ".join(row["sent"]),
            ]
            for row in result["series"]
        ),
    )
    print_line(f"{len(result['series'])} series")
