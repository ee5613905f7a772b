"""The `hqinet` command: a thin door to the flows.

Exit status: 0 done; 1 failed, with one line that says what to do; 2 wrong usage; 3 done, but
something was refused (by `promote`; elsewhere only with --strict).
"""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from flows.cli import dataset as dataset_verbs
from flows.cli.options import Commit, Home, Json, enter
from flows.operations import home as homes
from flows.operations.server import server
from hqinet.training.recipe import load_recipe

if TYPE_CHECKING:
    from flows.settings import IngestSettings

# Flows are imported inside the commands: Prefect reads its settings when it is imported, and
# --home must be known by then. Recipes and the source's path are looked at before that, for
# mistakes in them are the usual ones, and a home and a server take seconds.

app = typer.Typer(
    help="Low-dose CT: DICOM in, a judged model out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.add_typer(dataset_verbs.app, name="dataset")
report = typer.Typer(help="Reports that `hqinet evaluate` wrote.", no_args_is_help=True)
app.add_typer(report, name="report")

Strict = Annotated[bool, typer.Option("--strict", help="Exit 3 if anything was refused.")]
Cohort = Annotated[str | None, typer.Option(help="Name of the delivery.")]
CohortFile = Annotated[
    Path | None, typer.Option(help="TOML that describes a delivery the defaults do not.")
]
RECIPES = "paper, fast, demo, redcnn, or a TOML file"
RecipeName = Annotated[str, typer.Option("--recipe", help=f"{RECIPES}.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="TOML on top of the recipe, as `model.width=0.25`; repeatable."),
]
PolicyName = Annotated[str, typer.Option("--policy", help="Name of a policy, or a TOML file.")]
Source = Annotated[Path, typer.Argument(help="Folder of DICOM files, in any layout.")]

REFUSED = 3
ASK_FROM = 1_000_000_000
"""Bytes from which a download asks first."""


@app.command()
def ingest(
    source: Source,
    cohort: Cohort = None,
    cohort_file: CohortFile = None,
    strict: Strict = False,
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Read a folder of DICOM into the dataset: one new commit, or none if nothing is new."""
    from storage.ingest.inventory import require_folder

    require_folder(source, str(source))
    enter(home)
    from flows import ingest as flow
    from flows.cli import output

    with orchestrated():
        result = flow.ingest(str(source), cohort, ingest_settings(cohort_file)).model_dump()
    output.answer(result, output.print_ingest, as_json=as_json)
    leave(refused=strict and bool(result["refused"]))


@app.command()
def train(
    recipe: Annotated[str | None, typer.Option(help=f"{RECIPES}; default: fast.")] = None,
    commit: Commit = None,
    resume: Annotated[str | None, typer.Option(help="MLflow run to take up again.")] = None,
    overrides: Overrides = None,
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Train on the training patients of a commit and register a model version."""
    if resume and (recipe or overrides or commit is not None):
        raise typer.BadParameter("--resume goes on with the run's own recipe and commit")
    if not resume:
        load_recipe(recipe or "fast", *(overrides or []))
    enter(home)
    from flows import train as flow
    from flows.cli import output

    with orchestrated():
        result = flow.train(recipe or "fast", commit, resume, overrides or []).model_dump()
    output.answer(result, output.print_training, as_json=as_json)


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="Version, champion or latest.")] = "latest",
    commit: Commit = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Restore and measure the patients of a split, and write a report."""
    enter(home)
    from flows import evaluate as flow
    from flows.cli import output

    with orchestrated():
        result = flow.evaluate(model, commit, split).model_dump()
    output.answer(result, output.print_evaluation, as_json=as_json)


@app.command()
def promote(
    model: Annotated[int | None, typer.Option(help="Version; default: the newest.")] = None,
    commit: Commit = None,
    policy: PolicyName = "default",
    rollback: Annotated[bool, typer.Option(help="Give the alias back to the one before.")] = False,
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Judge a challenger against the champion; exits 3 if it is refused."""
    if rollback and (model is not None or commit is not None):
        raise typer.BadParameter("--rollback goes back to the champion before, whichever it is")
    enter(home)
    from flows import promote as flow
    from flows.cli import output

    with orchestrated():
        result = flow.rollback_promotion() if rollback else flow.promote(model, commit, policy)
    output.answer(result.model_dump(), output.print_verdict, as_json=as_json)
    leave(refused=result.verdict == "refused")


@app.command()
def pipeline(
    source: Source,
    cohort: Cohort = None,
    cohort_file: CohortFile = None,
    recipe: RecipeName = "fast",
    policy: PolicyName = "default",
    overrides: Overrides = None,
    strict: Strict = False,
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Ingest, train, evaluate and promote: a folder of DICOM in, a judged model out."""
    from storage.ingest.inventory import require_folder

    load_recipe(recipe, *(overrides or []))
    require_folder(source, str(source))
    enter(home)
    from flows import pipeline as flow
    from flows.cli import output

    settings = ingest_settings(cohort_file)
    with orchestrated():
        result = flow.pipeline(
            str(source), cohort, recipe, policy, overrides or [], settings
        ).model_dump()
    output.answer(result, output.print_pipeline, as_json=as_json)
    refused = bool(result["ingest"]["refused"]) or result["promote"]["verdict"] == "refused"
    leave(refused=strict and refused)


@app.command()
def demo(home: Home = homes.DEFAULT, as_json: Json = False) -> None:
    """The pipeline on a synthetic cohort that it makes itself: phantoms, not patients."""
    enter(home)
    from flows import demo as flow
    from flows.cli import output

    with orchestrated():
        result = flow.demo().model_dump()
    if not as_json:
        output.print_line(flow.NOTICE)
    output.answer(result, output.print_pipeline, as_json=as_json)


@app.command()
def models(home: Home = homes.DEFAULT, as_json: Json = False) -> None:
    """List the model versions with their verdicts."""
    enter(home)
    from flows import stores
    from flows.cli import output

    rows = [
        {"version": row.version, "aliases": list(row.aliases), "run": row.run, **row.tags}
        for row in stores.registry().versions()
    ]
    output.answer({"models": rows}, output.print_models, as_json=as_json)


@app.command()
def fetch(
    collection: Annotated[str, typer.Argument(help="As ldct_and_projection_data.")],
    destination: Annotated[Path, typer.Argument(help="Folder to download to.")],
    patients: Annotated[list[str] | None, typer.Option(help="Only this one; repeatable.")] = None,
    anatomy: Annotated[str | None, typer.Option(help="chest or abdomen.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many patients.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(envvar="HQINET_FETCH_ENDPOINT", help="Another S3 server.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before gigabytes.")] = False,
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Download the image pairs of a public collection; run again to go on or to check."""
    enter(home)
    from flows.cli import downloads, output
    from storage.collections import idc

    chosen = idc.select(collection, patients=split_names(patients), anatomy=anatomy, limit=limit)
    if chosen.size > ASK_FROM and not yes:
        typer.confirm(f"{downloads.describe(chosen)} to {destination}?", abort=True, err=True)
    with downloads.bar(chosen) as progress:
        fetched = idc.fetch(chosen, destination, endpoint=endpoint, progress=progress)
    if as_json:
        output.print_json({"patients": list(chosen.patients), **asdict(fetched)})
    else:
        output.print_line(f"{downloads.describe(chosen)}: {destination}")
        output.print_line(f"{fetched.files} files downloaded, {fetched.present} were there")


def split_names(names: list[str] | None) -> list[str] | None:
    """Patients given as `--patients A --patients B` or as `--patients A,B`."""
    return [name for part in names for name in part.split(",") if name] if names else None


@report.command()
def compare(
    left: Annotated[str, typer.Argument(metavar="MODEL", help="Version or alias.")],
    right: Annotated[str, typer.Argument(metavar="MODEL", help="Version or alias.")],
    commit: Commit = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Set the reports of two model versions on one commit side by side."""
    enter(home)
    from flows import evaluate as flow
    from flows.cli import output

    with quiet():
        page = flow.compare(left, right, commit, split)
    if as_json:
        output.print_json({"comparison": str(page)})
    else:
        output.print_line(f"comparison: {page}")


@app.command()
def env(home: Home = homes.DEFAULT, as_json: Json = False) -> None:
    """Make the home, and print the variables that put a Prefect server and its workers there."""
    home = home.expanduser().absolute()
    # A server that finds no folder for its database does not start.
    (home / "prefect").mkdir(parents=True, exist_ok=True)
    variables = homes.environment(home)
    if as_json:
        print(json.dumps(variables))
        return
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")


def ingest_settings(cohort_file: Path | None) -> "IngestSettings":
    """The settings of the environment, with another cohort file if one was given."""
    from flows.settings import Settings

    settings = Settings().ingest
    return settings.model_copy(update={"cohort_file": cohort_file}) if cohort_file else settings


@contextmanager
def orchestrated() -> Iterator[None]:
    """Flows run in here: their server is there, and standard output is left to the result."""
    with quiet(), server():
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries print off standard output, which is the result's alone."""
    with redirect_stdout(sys.stderr):
        yield


def leave(*, refused: bool) -> None:
    """End the command, saying whether something was refused."""
    if refused:
        raise typer.Exit(REFUSED)


def fail(message: str) -> NoReturn:
    """End with status 1 and one line."""
    print(f"hqinet: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)


def main() -> None:
    """Run the command; a user's mistake ends in one line, never in a traceback."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from hqinet.errors import HqinetError
    from storage.errors import StorageError

    try:
        app()
    except (StorageError, HqinetError) as error:
        fail(str(error))
    except OSError as error:
        if error.filename is None:
            fail(f"{type(error).__name__}: {error}")
        fail(f"{error.filename}: {error.strerror or error}: choose another path")
    except SettingsError as error:
        fail(f"{error}: give JSON")
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, row['loc']))}: {row['msg']}" for row in error.errors())
        fail(f"{error.title}: {'; '.join(problems)}")
