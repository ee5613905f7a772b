"""The verb that takes images from scanners."""

import signal
from pathlib import Path
from threading import Event
from typing import Annotated

import typer

from flows.cli.options import Home, Json
from flows.operations import home as homes


def receive(
    rules: Annotated[
        Path | None, typer.Option(envvar="HQINET_RECEIVE__RULES", help="TOML: what goes where.")
    ] = None,
    explain: Annotated[
        Path | None, typer.Option(help="Say where this DICOM file would go, and by which rule.")
    ] = None,
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Take images by DICOM (C-STORE) into the inboxes of this home, until Ctrl-C."""
    from flows.cli import output
    from flows.operations.routing import read_rules

    known = read_rules(rules)
    if explain is not None:
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError

        try:
            header = dcmread(explain, stop_before_pixels=True)
        except InvalidDicomError as error:
            raise typer.BadParameter(f"{explain} is no DICOM file") from error
        target, rule = known.route(header)
        by = "no rule" if rule is None else f"rule {rule}"
        made = {"to": target, "rule": rule}
        output.answer(
            made, lambda _: output.print_line(f"{explain}: {target} by {by}"), as_json=as_json
        )
        return
    home = homes.enter(home)
    from flows.operations import log, receiver
    from flows.settings import Settings

    say = log.say if as_json else output.print_line
    settings, stop = Settings().receive, Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    taking = receiver.Receiver(home, known, settings.quiet, say)
    say(f"{settings.ae_title} listens on {settings.host}:{settings.port}")
    receiver.run(taking, settings, stop)
