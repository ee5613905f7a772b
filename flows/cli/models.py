"""The verbs that look at models: their versions, and two reports side by side."""

from typing import Annotated, Literal

import typer

from flows.cli.options import Commit, Home, Json, Split, enter, quiet, require
from flows.operations import home as homes

app = typer.Typer(help="The model versions with their verdicts.")
report = typer.Typer(help="Reports that `hqinet evaluate` wrote.", no_args_is_help=True)


@app.callback(invoke_without_command=True)
def models(context: typer.Context, home: Home = homes.DEFAULT, as_json: Json = False) -> None:
    """List the model versions with their verdicts."""
    if context.invoked_subcommand:
        return
    require(home)
    enter(home)
    from flows import stores
    from flows.cli import output

    rows = [
        {"version": row.version, "aliases": list(row.aliases), "run": row.run, **row.tags}
        for row in stores.versions()
    ]
    output.answer({"models": rows}, output.print_models, as_json=as_json)


@app.command()
def add(
    model: Annotated[Literal["starter"], typer.Argument(help="starter: it ships with hqinet.")],
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Register a model that was not trained here, as a challenger."""
    require(home)
    enter(home)
    from flows import starter
    from flows.cli import output

    with quiet():
        added = starter.add_starter()
    output.answer(
        added.model_dump(),
        lambda made: output.print_line(f"{model} is model version {made['model']}"),
        as_json=as_json,
    )


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
