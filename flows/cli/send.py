"""The verb that sends series to PACS and other destinations."""

import signal
from pathlib import Path
from threading import Event
from typing import Annotated

import typer

from flows.cli.options import Home, Json
from flows.operations import home as homes


def send(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of one series; without one, the queue is served.")
    ] = None,
    to: Annotated[str, typer.Option("--to", help="Name of the destination.")] = "",
    destinations: Annotated[
        Path | None,
        typer.Option(envvar="HQINET_SEND__DESTINATIONS", help="TOML: a table for each."),
    ] = None,
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Send a series by C-STORE or STOW-RS; what is not taken now waits in the home's outbox."""
    from flows.cli import output
    from flows.operations import destinations as known
    from flows.operations import log, sender
    from flows.operations.outbox import Outbox

    there = known.read_destinations(destinations)
    outbox = Outbox(homes.enter(home))
    if folder is None:
        stop = Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        sender.work(outbox, there, log.say if as_json else output.print_line, stop)
        return
    target = known.known(there, to)
    job = outbox.put_again(folder, to)
    said = sender.attempt(outbox, job, target)
    sent = not any(row.folder == job.folder for row in outbox.waiting(to))
    output.answer({"sent": sent, "said": said}, lambda _: output.print_line(said), as_json=as_json)
    if not sent:
        raise typer.Exit(1)
