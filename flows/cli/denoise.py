"""The verb that restores series with a trained model."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from flows.cli.options import Home, Json, PolicyName, enter, leave, orchestrated, quiet
from flows.operations import home as homes

if TYPE_CHECKING:
    from flows.compute.sources import DenoiseResult
    from flows.settings import DenoiseSettings


def denoise(
    source: Annotated[Path, typer.Argument(help="Folder, zip or file of DICOM, in any layout.")],
    destination: Annotated[Path, typer.Argument(help="Folder for the derived series.")],
    model: Annotated[
        str | None, typer.Option(help="champion, a version, or starter; default: champion.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="Share of the change that is made, 0 to 1.")
    ] = None,
    dose: Annotated[
        float | None, typer.Option(help="Dose of the source over full dose; default: 0.25.")
    ] = None,
    series: Annotated[
        str | None, typer.Option(help="Expression on SeriesDescription that chooses.")
    ] = None,
    cohort_file: Annotated[
        Path | None, typer.Option(help="TOML that says how doses are told apart.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse what lies outside the training data.")
    ] = False,
    compress: Annotated[str | None, typer.Option(help="jpeg-ls or rle, both lossless.")] = None,
    policy: PolicyName = "default",
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Restore low-dose CT series: derived DICOM beside the original. Not for diagnostic use."""
    enter(home)
    from flows.settings import DenoiseSettings, Settings

    given: dict[str, Any] = {
        "model": model,
        "strength": strength,
        "dose": dose,
        "series": series,
        "cohort_file": cohort_file,
        "strict": strict or None,
        "compress": compress,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    try:
        settings = DenoiseSettings(**(Settings().denoise.model_dump() | asked))
    except ValidationError as error:
        (first, *_) = error.errors()
        name = str(first["loc"][0]).replace("_", "-")
        raise typer.BadParameter(f"--{name} {first['input']}: {first['msg']}") from error
    result = _restored(source, destination, settings, policy)
    from flows.cli import output

    output.answer(result.model_dump(), output.print_denoised, as_json=as_json)
    leave(refused=bool(result.count("refused") + result.count("quarantined")))


def _restored(
    source: Path, destination: Path, settings: "DenoiseSettings", policy: str
) -> "DenoiseResult":
    """A run that Prefect keeps where its server is up; one is not started for this alone.

    It takes longer to start than a series to restore, and what was done stands in the home's index.
    """
    from flows.compute.models import load_ahead

    # Meanwhile the source is looked through.
    load_ahead(settings.model, settings.dose, settings.device)
    if "PREFECT_API_URL" in os.environ:
        from flows.denoise import denoise as flow

        with orchestrated():
            return flow(str(source), str(destination), settings, policy=policy)
    from flows.compute.sources import restore_source
    from flows.settings import Settings

    with quiet():
        return restore_source(source, destination, settings, Settings().cluster, policy)
