"""The verb that prints the environment of a home."""

import json
import shlex

from flows.cli.options import Home, Json
from flows.operations import home as homes
from flows.operations import services


def env(home: Home = homes.DEFAULT, as_json: Json = False) -> None:
    """Make the home, and print the variables that put a Prefect server and its workers there."""
    home = home.expanduser().absolute()
    # A server that finds no folder for its database does not start.
    (home / "prefect").mkdir(parents=True, exist_ok=True)
    variables = homes.environment(home)
    running = services.read(home)
    if running is not None and running.is_up:
        variables["PREFECT_API_URL"] = running.prefect
    if as_json:
        print(json.dumps(variables))
        return
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")
