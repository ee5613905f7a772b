"""The `hqinet` command: a thin door to the flows.

Exit status: 0 done; 1 failed, with one line that says what to do; 2 wrong usage; 3 done, but
something was refused (by `promote` and `denoise`; elsewhere only with --strict); 130 Ctrl-C.
"""

import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from flows.cli import (
    calibrate,
    collections,
    dataset,
    denoise,
    environment,
    models,
    pipeline,
    receive,
    send,
    services,
    trace,
)
from flows.errors import FlowError
from hqinet.errors import HqinetError
from hqinet.training.interrupts import TrainingInterruptedError
from storage.errors import StorageError

INTERRUPTED = 130

app = typer.Typer(
    help="Low-dose CT: DICOM in, a judged model out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for verb in (
    pipeline.ingest,
    pipeline.train,
    pipeline.evaluate,
    pipeline.promote,
    pipeline.pipeline,
    pipeline.demo,
    calibrate.calibrate,
    denoise.denoise,
    trace.explain,
    trace.replay,
    trace.recall,
    trace.show,
    collections.fetch,
    environment.env,
    receive.receive,
    send.send,
    services.up,
    services.down,
    services.status,
    services.doctor,
    services.backup,
):
    app.command()(verb)
app.add_typer(dataset.app, name="dataset")
app.add_typer(models.app, name="models")
app.add_typer(models.report, name="report")
app.add_typer(services.automations, name="automations")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"hqinet {version('hqinet')}")
        raise typer.Exit


@app.callback()
def _common(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="And exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command; a user's mistake ends in one line, never in a traceback."""
    try:
        app()
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:
            fail("stopped", INTERRUPTED)
        raise
    except TrainingInterruptedError as error:
        fail(str(error), INTERRUPTED)
    except (FlowError, StorageError, HqinetError) as error:
        fail(str(error))
    except OSError as error:
        if error.filename is None:
            fail(f"{type(error).__name__}: {error}")
        fail(f"{error.filename}: {error.strerror or error}: choose another path")
    except Exception as error:
        # A library that Ctrl-C met at an awkward moment raises an error of its own over it.
        if _came_of_interrupt(error):
            fail("stopped", INTERRUPTED)
        raise


def _came_of_interrupt(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def fail(message: str, status: int = 1) -> NoReturn:
    """End with one line."""
    print(f"hqinet: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
