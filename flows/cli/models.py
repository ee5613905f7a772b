"""The verbs that look at models: their versions, and two reports side by side."""

from typing import Annotated

import typer

from flows.cli.options import Commit, Home, Json, Split, enter, quiet, require
from flows.operations import home as homes

report = typer.Typer(help="Reports that `hqinet evaluate` wrote.", no_args_is_help=True)


def models(home: Home = homes.DEFAULT, as_json: Json = False) -> None:
    """List the model versions with their verdicts."""
    require(home)
    enter(home)
    from flows import stores
    from flows.cli import output

    rows = [
        {"version": row.version, "aliases": list(row.aliases), "run": row.run, **row.tags}
        for row in stores.registry().versions()
    ]
    output.answer({"models": rows}, output.print_models, as_json=as_json)


@report.command()
def compare(
    left: Annotated[str, typer.Argument(metavar="MODEL", help="Version or alias.")],
    right: Annotated[str, typer.Argument(metavar="MODEL", help="Version or alias.")],
    commit: Commit = None,
    split: Split = "test",
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Set the reports of two model versions on one commit side by side."""
    require(home)
    enter(home)
    from flows import evaluate as flow
    from flows.cli import output

    with quiet():
        page = flow.compare(left, right, commit, split)
    output.answer(
        {"comparison": str(page)},
        lambda made: output.print_line(f"comparison: {made['comparison']}"),
        as_json=as_json,
    )
