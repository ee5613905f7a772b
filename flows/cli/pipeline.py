"""The verbs of the pipeline: ingest, train, evaluate, promote, all four, and the demonstration.

Flows are imported inside the verbs: Prefect reads its settings when it is imported, and --home must
be known by then. Recipes, the source's path and the dataset are looked at before that, for mistakes
in them are the usual ones, and a server takes seconds.
"""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import (
    Commit,
    Home,
    Json,
    Model,
    PolicyName,
    Split,
    enter,
    leave,
    orchestrated,
    quiet,
    require,
)
from flows.operations import home as homes
from hqinet.training.recipe import load_recipe

if TYPE_CHECKING:
    from flows.settings import IngestSettings

Strict = Annotated[bool, typer.Option("--strict", help="Exit 3 if anything was refused.")]
Cohort = Annotated[str | None, typer.Option(help="Name of the delivery.")]
CohortFile = Annotated[
    Path | None, typer.Option(help="TOML that describes a delivery the defaults do not.")
]
RECIPES = "paper, fast, demo, starter, redcnn, or a TOML file"
RecipeName = Annotated[str, typer.Option("--recipe", envvar="HQINET_RECIPE", help=f"{RECIPES}.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="TOML on top of the recipe, as `model.width=0.25`; repeatable."),
]
SimulateDose = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=0.99,
        help="Give full-dose series without a partner a simulated one of this dose fraction.",
    ),
]
Realisations = Annotated[
    int | None,
    typer.Option(min=1, max=16, help="Simulate so many low doses, which differ in their noise."),
]
DetectorFile = Annotated[
    Path | None,
    typer.Option("--detector", help="TOML of `hqinet calibrate`: simulate with this scanner."),
]
Source = Annotated[Path, typer.Argument(help="Folder of DICOM files, in any layout.")]


def ingest(
    source: Source,
    cohort: Cohort = None,
    cohort_file: CohortFile = None,
    simulate_dose: SimulateDose = None,
    realisations: Realisations = None,
    detector: DetectorFile = None,
    strict: Strict = False,
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Read a folder of DICOM into the dataset: one new commit, or none if nothing is new."""
    from storage.ingest.delivery import require_folder

    require_folder(source, str(source))
    enter(home)
    from flows import ingest as flow
    from flows.cli import output

    asked = {
        "simulate_dose": simulate_dose,
        "realisations": realisations,
        "detector": detector and detector.absolute(),
    }
    given = {name: value for name, value in asked.items() if value is not None}
    settings = ingest_settings(cohort_file).model_copy(update=given)
    with orchestrated():
        shown = flow.shown_source(source, settings)
        result = flow.ingest(shown, cohort, settings).model_dump()
    output.answer(result, output.print_ingest, as_json=as_json)
    leave(refused=strict and bool(result["refused"]))


def train(
    recipe: Annotated[
        str | None, typer.Option(help=f"{RECIPES}; default: fast, or starter with --from starter.")
    ] = None,
    commit: Commit = None,
    resume: Annotated[str | None, typer.Option(help="MLflow run to take up again.")] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Begin with the weights of starter, or of a version."),
    ] = None,
    overrides: Overrides = None,
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Train on the training patients of a commit and register a model version."""
    if resume and (recipe or overrides or start or commit is not None):
        raise typer.BadParameter("--resume goes on with the run's own recipe and commit")
    if not resume:
        usual = "starter" if start == "starter" else os.environ.get("HQINET_RECIPE", "fast")
        recipe = recipe or usual
        recipe = readable_recipe(recipe, overrides)
    require(home)
    enter(home)
    from flows.cli import output
    from flows.settings import Settings

    if (settings := Settings().train).node:
        from flows.compute.distributed import join

        with quiet():
            join(settings)
        output.answer(
            {"joined": settings.rendezvous},
            lambda made: output.print_line(f"trained with {made['joined']}"),
            as_json=as_json,
        )
        return
    require_dataset(commit)
    from flows import train as flow

    with orchestrated():
        result = flow.train(recipe or "fast", commit, resume, overrides or [], start).model_dump()
    output.answer(result, output.print_training, as_json=as_json)


def evaluate(
    model: Model = "latest",
    commit: Commit = None,
    split: Split = "test",
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Restore and measure the patients of a split, and write a report."""
    require(home)
    enter(home)
    require_dataset(commit)
    from flows import evaluate as flow
    from flows.cli import output

    with orchestrated():
        result = flow.evaluate(model, commit, split).model_dump()
    output.answer(result, output.print_evaluation, as_json=as_json)


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
    require(home)
    enter(home)
    require_dataset(commit)
    from flows import promote as flow
    from flows.cli import output

    with orchestrated():
        result = flow.rollback_promotion() if rollback else flow.promote(model, commit, policy)
    output.answer(result.model_dump(), output.print_verdict, as_json=as_json)
    leave(refused=result.verdict == "refused")


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
    from storage.ingest.delivery import require_folder

    recipe = readable_recipe(recipe, overrides)
    require_folder(source, str(source))
    enter(home)
    from flows import pipeline as flow
    from flows.cli import output
    from flows.ingest import shown_source

    settings = ingest_settings(cohort_file)
    with orchestrated():
        result = flow.pipeline(
            shown_source(source, settings), cohort, recipe, policy, overrides or [], settings
        ).model_dump()
    output.answer(result, output.print_pipeline, as_json=as_json)
    refused = bool(result["ingest"]["refused"]) or result["promote"]["verdict"] == "refused"
    leave(refused=strict and refused)


def demo(home: Home = homes.DEFAULT, as_json: Json = False) -> None:
    """The pipeline on a synthetic cohort that it makes itself: phantoms, not patients."""
    if "HQINET_TRACKING_URI" in os.environ:
        # On a server that others share, phantoms' models never stand among theirs.
        os.environ.setdefault("HQINET_MODEL", "hqinet-demo")
    enter(home)
    from flows import demo as flow
    from flows.cli import output

    with orchestrated():
        result = flow.demo().model_dump()
    if not as_json:
        output.print_line(flow.NOTICE)
    output.answer(result, output.print_pipeline, as_json=as_json)


def require_dataset(commit: int | None) -> None:
    """Raise DatasetError if there is no dataset, or no such commit in it."""
    from flows import stores

    stores.dataset().snapshot(commit)


def ingest_settings(cohort_file: Path | None) -> "IngestSettings":
    """The settings of the environment, with another cohort file if one was given."""
    from flows.settings import Settings

    settings = Settings().ingest
    return settings.model_copy(update={"cohort_file": cohort_file}) if cohort_file else settings


def readable_recipe(recipe: str, overrides: list[str] | None) -> str:
    """Look a recipe over before anything starts; returns a name or file that can be read again.

    Of a pipe, as the shell's `<(...)`, a copy is made: it gives its text once.
    """
    file = Path(recipe)
    if file.exists() and not file.is_file():
        with tempfile.NamedTemporaryFile("w", suffix=".toml", delete=False) as copy:
            copy.write(file.read_text(encoding="utf-8"))
        recipe = copy.name
    load_recipe(recipe, *(overrides or []))
    return recipe
