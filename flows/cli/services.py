"""The verbs of the services that run in a home: up, down, status, doctor, backup, automations."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.options import Home, Json, enter, quiet
from flows.operations import home as homes
from flows.operations import processes, services, systemd
from flows.operations.day import DayReport
from flows.operations.services import Services

automations = typer.Typer(help="What Prefect's server tells the operator.", no_args_is_help=True)


def up(
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, and end the services with Ctrl-C.")
    ] = False,
    as_unit: Annotated[
        bool, typer.Option("--systemd", help="Write a systemd user unit, and start nothing.")
    ] = False,
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Start Prefect, MLflow and the workers of this home, unless they run; returns when they do."""
    from flows.cli import output

    enter(home)
    home = home.expanduser().absolute()
    from flows.operations.destinations import require_destinations
    from flows.operations.routing import read_rules
    from flows.settings import Settings

    homes.settle_paths()
    settings = Settings()
    # A mistake in a variable is better said here than in a log.
    require_destinations(settings.send)
    read_rules(settings.receive.rules)
    if as_unit:
        made = {"unit": str(systemd.write_unit(home))}
        output.answer(made, _print_unit, as_json=as_json)
        return
    if foreground:
        command = services.supervisor_command(home)
        os.execv(command[0], command)  # noqa: S606 - the supervisor takes this process over
    known = services.read(home)
    if known is None or not known.is_supervised:
        print(f"hqinet: starting the services of {home}; logs in {home / 'logs'}", file=sys.stderr)
    output.answer(_shown(services.start(home)), _print_services, as_json=as_json)


def down(home: Home = homes.DEFAULT, as_json: Json = False) -> None:
    """End the services of this home: workers and their runs first, then the servers."""
    from flows.cli import output

    homes.require(home)
    home = home.expanduser().absolute()
    ended = services.stop(home)
    line = f"the services of {home} are ended" if ended else f"no services of {home} run"
    output.answer({"ended": ended}, lambda _: output.print_line(line), as_json=as_json)


def status(home: Home = homes.DEFAULT, as_json: Json = False) -> None:
    """Show the services of this home and its queue; exits 1 if one of them does not run."""
    from flows.cli import output

    homes.require(home)
    home = home.expanduser().absolute()
    known = services.read(home)
    shown: dict[str, Any] = {"state": "down", "services": []} if known is None else _shown(known)
    if known is not None and known.is_up:
        shown |= _queue(known.prefect)
    day = DayReport.read(home)
    shown["day"] = None if day is None else day.model_dump(mode="json")
    output.answer(shown, _print_services, as_json=as_json)
    if shown["state"] != "up":
        raise typer.Exit(1)


def doctor(home: Home = homes.DEFAULT, as_json: Json = False) -> None:
    """Look this installation over, a line each with what to do; exits 1 on a failure."""
    homes.require(home)
    enter(home)
    from flows.cli import output
    from flows.operations.doctor import examine

    with quiet():
        checks = [check.model_dump() for check in examine(home.expanduser().absolute())]
    output.answer({"checks": checks}, _print_checks, as_json=as_json)
    if any(check["outcome"] == "failure" for check in checks):
        raise typer.Exit(1)


def backup(
    target: Annotated[Path, typer.Argument(metavar="FILE.tar", help="On another disk.")],
    home: Home = homes.DEFAULT,
    as_json: Json = False,
) -> None:
    """Write the home into a tar file, while its services go on."""
    from flows.cli import output
    from flows.operations.backup import back_up

    homes.require(home)
    made = {"file": str(target), "files": back_up(home.expanduser().absolute(), target)}
    output.answer(
        made, lambda _: output.print_line(f"{made['files']} files: {target}"), as_json=as_json
    )


@automations.command()
def apply(home: Home = homes.DEFAULT, as_json: Json = False) -> None:
    """Make the automations on the running server what HQINET_SERVICES__WEBHOOK asks for."""
    homes.require(home)
    enter(home)
    from flows.cli import output
    from flows.operations import automations
    from flows.settings import Settings

    services.require_up(home.expanduser().absolute())
    with quiet():
        names = automations.apply(Settings().services)
    output.answer(
        {"automations": names},
        lambda made: output.print_line(
            "\n".join(made["automations"]) or "no webhook, nothing told"
        ),
        as_json=as_json,
    )


def _shown(known: Services) -> dict[str, Any]:
    rows = [
        {"name": row.name, "process": _number(row.process), "since": _since(row.process)}
        | {"starts": row.starts}
        for row in known.services
    ]
    state = known.state if known.is_supervised else "down"
    if state == "up" and not all(row["process"] for row in rows):
        state = "degraded"
    return {
        "state": state,
        "prefect": known.prefect.removesuffix("/api"),
        "mlflow": known.mlflow,
        "services": rows,
    }


def _number(known: str) -> int | None:
    process = processes.find(known)
    return None if process is None else process.pid


def _since(known: str) -> str | None:
    process = processes.find(known)
    if process is None:
        return None
    return datetime.fromtimestamp(process.create_time(), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _queue(prefect: str) -> dict[str, Any]:
    """What waits, or why that is not known."""
    import httpx

    from flows.operations import queue

    try:
        return {"queue": queue.look(prefect), "unseen": None}
    except httpx.HTTPError as error:
        return {"queue": [], "unseen": queue.unseen(error)}


def _print_services(shown: dict[str, Any]) -> None:
    from flows.cli import output

    if shown["services"]:
        keys = ("name", "process", "since", "starts")
        output.print_table(
            "Services", keys, ([row[key] for key in keys] for row in shown["services"])
        )
    if shown.get("queue"):
        keys = ("pool", "running", "waiting", "late", "bad ends in 24 h", "workers")
        output.print_table("Queue", keys, ([row[key] for key in keys] for row in shown["queue"]))
    if shown.get("unseen"):
        output.print_line(shown["unseen"])
    if shown.get("day"):
        _print_day(shown["day"])
    if shown["state"] in {"up", "degraded"}:
        output.print_line(f"Prefect: {shown['prefect']}")
        if shown["mlflow"]:
            output.print_line(f"MLflow: {shown['mlflow']}")
    output.print_line(f"services: {shown['state']}")


def _print_day(day: dict[str, Any]) -> None:
    from flows.cli import output

    speed = "" if day["seconds_a_slice"] is None else f", {day['seconds_a_slice']:g} s a slice"
    output.print_line(
        f"day until {day['written'][:16].replace('T', ' ')} UTC: {day['restored']} series restored"
        f"{speed}; {len(day['bad_ends'])} runs refused or failed; {day['free_gib']:g} GiB free"
    )
    refused = ", ".join(f"{count} {code}" for code, count in day["refused"].items())
    if refused:
        output.print_line(f"series refused or quarantined: {refused}")
    for line in day["unfinished"]:
        output.print_line(f"left by the chain: {line}")
    for line in day["drift"]:
        output.print_line(f"drift: {line}")


def _print_checks(made: dict[str, Any]) -> None:
    from flows.cli import output

    marks = {"ok": "ok     ", "note": "note   ", "failure": "FAILURE"}
    for check in made["checks"]:
        line = f"{marks[check['outcome']]} {check['name']}: {check['found']}"
        output.print_line(line + (f" - {check['advice']}" if check["advice"] else ""))


def _print_unit(made: dict[str, Any]) -> None:
    from flows.cli import output

    name = Path(made["unit"]).name
    output.print_line(f"wrote {made['unit']}; now:")
    output.print_line(f"  systemctl --user daemon-reload && systemctl --user enable --now {name}")
    output.print_line("  loginctl enable-linger   # they start with the machine, not with a login")
