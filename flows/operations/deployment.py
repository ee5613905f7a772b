"""Puts pools, deployments and automations on the server of PREFECT_API_URL; safe to repeat.

Run (`python -m ...`) by the supervisor in a process of its own, for it imports every flow, and by
`compose.yaml` before the workers.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists
from prefect.workers.process import ProcessWorker

from flows.errors import FlowError
from flows.operations import automations
from flows.operations.services import POOLS, make_folders
from flows.settings import Settings

TAG = "hqinet"
"""Of all deployments of ours."""
FILE = Path(__file__).parents[2] / "prefect.yaml"


class DeploymentError(FlowError):
    """What cannot be deployed; one line."""


def declared() -> list[dict[str, Any]]:
    """The deployments of prefect.yaml."""
    return yaml.safe_load(FILE.read_text())["deployments"]


def make_pools() -> None:
    """Make the work pools where they are not there, and set how much they run at once."""
    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        for name, limit in POOLS.items():
            pool = WorkPoolCreate(
                name=name, type="process", base_job_template=template, concurrency_limit=limit
            )
            try:
                client.create_work_pool(pool)
            except ObjectAlreadyExists:
                client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=limit))


def deploy() -> None:
    """Deploy all of prefect.yaml; its triggers replace those of before.

    Raises DeploymentError where the file is not there, or Prefect refuses it.
    """
    if not FILE.exists():
        raise DeploymentError(
            f"{FILE} is not there: run from a checkout (`pip install --editable .`), which holds it"
        )
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    command += ["--prefect-file", str(FILE)]
    if subprocess.run(command, cwd=FILE.parent, check=False).returncode:
        raise DeploymentError(f"Prefect refuses {FILE}: what it says stands above")


def remove_former() -> None:
    """Remove deployments of ours that the file has no more, as of an earlier version.

    They would go on by their schedules beside those that took their place.
    """
    named = {row["name"] for row in declared()}
    with get_client(sync_client=True) as client:
        for row in client.read_deployments():
            if TAG in row.tags and row.name not in named:
                client.delete_deployment(row.id)


def main() -> None:
    """Folders of the home, pools, deployments, automations."""
    settings = Settings()
    make_folders(settings.home.absolute())
    make_pools()
    deploy()
    remove_former()
    automations.apply(settings.services)


if __name__ == "__main__":
    try:
        main()
    except FlowError as error:
        sys.exit(str(error))
