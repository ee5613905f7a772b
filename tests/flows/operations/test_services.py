"""`hqinet up` on a home of its own, and all that then happens though nobody types.

One file, for the services are started once for it. The tests run in the order in which they stand.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import pydicom
import pytest
import yaml

from flows.operations import deployment, processes
from flows.operations.automations import AutomationError, require_narrow
from flows.operations.outbox import OLDEST, Job
from flows.operations.services import POOLS, read
from flows.operations.watch import EVERY
from flows.train import held
from hqinet.training.checkpoint import load_checkpoint
from storage.stores import files

# A chain of seven runs, each of which imports torch: minutes on a machine that is busy.
pytestmark = pytest.mark.timeout(900)
FILE = yaml.safe_load(deployment.FILE.read_text())


def test_the_services_are_ours_whoever_has_the_port_that_we_would_like(installation, stranger):
    known = installation.services()
    assert known.state == "up"
    port = httpx.URL(known.prefect).port
    assert port != stranger
    assert processes.listens(processes.find(installation.service("prefect").process), port)
    assert httpx.get(f"{known.mlflow}/health", timeout=10).status_code == 200


def test_up_again_starts_nothing(installation):
    before = installation.services()
    again = installation.command("up", "--json")
    assert json.loads(again.stdout)["state"] == "up"
    assert again.stderr == ""
    assert installation.services() == before


def test_status_shows_services_and_queue(installation):
    shown = installation.command.json("status")
    names = ["prefect", "mlflow", "worker-cpu", "worker-gpu", "watch", "send"]
    assert [row["name"] for row in shown["services"]] == names
    assert all(row["process"] and row["starts"] == 1 for row in shown["services"])
    installation.wait(lambda: workers_online(installation) == [1, 1], 60, "a worker in each pool")


def workers_online(installation) -> list[int]:
    return [row["workers"] for row in installation.command.json("status")["queue"]]


def test_every_deployment_of_the_file_is_there_under_a_name_of_its_own(installation):
    deployed = installation.post("deployments/filter")
    names = [row["name"] for row in FILE["deployments"]]
    assert len(set(names)) == len(names)
    assert sorted(row["name"] for row in deployed) == sorted(names)
    for row in deployed:
        assert row["description"], row["name"]
        assert "hqinet" in row["tags"], row["name"]


def test_pools_are_process_pools_and_the_gpu_takes_one_run(installation):
    pools = {row["name"]: row for row in installation.post("work_pools/filter")}
    assert {row["type"] for row in pools.values()} == {"process"}
    assert {name: row["concurrency_limit"] for name, row in pools.items()} == POOLS


def test_parameters_make_a_filled_form(installation):
    schema = installation.deployment("train-on-commit")["parameter_openapi_schema"]
    assert "recipe" in schema["properties"]["recipe"]["description"].lower()
    schema = installation.deployment("ingest-inbox")["parameter_openapi_schema"]
    for name, field in schema["definitions"]["IngestSettings"]["properties"].items():
        assert field.get("description") or "$ref" in str(field), name


def test_the_cron_deployments_get_future_runs(installation):
    for row in FILE["deployments"]:
        wanted = {"deployment_id": {"any_": [installation.deployment(row["name"])["id"]]}}
        wanted["state"] = {"type": {"any_": ["SCHEDULED"]}}
        planned = lambda wanted=wanted: installation.post("flow_runs/filter", flow_runs=wanted)  # noqa: E731
        if "schedules" in row:
            runs = installation.wait(planned, 60, f"a planned run of {row['name']}")
            assert all(run["auto_scheduled"] for run in runs)


def test_no_automation_is_met_by_every_event(installation):
    triggers = [trigger for row in FILE["deployments"] for trigger in row.get("triggers", [])]
    assert triggers
    for trigger in triggers:
        assert trigger["expect"]
        assert trigger["match"]
    automations = installation.post("automations/filter")
    assert len(automations) == len(triggers) + 4
    assert all(row["trigger"]["expect"] for row in automations)


def test_the_doctor_misses_an_automation_that_is_not_there(installation):
    def operator() -> dict:
        checks = installation.command("doctor", "--json").stdout
        return next(row for row in json.loads(checks)["checks"] if row["name"] == "operator")

    assert operator()["outcome"] == "ok"
    known = installation.post("automations/filter")
    (late,) = [row for row in known if row["name"] == "hqinet: tell of late runs"]
    url = f"{installation.services().prefect}/automations/{late['id']}"
    assert httpx.delete(url, timeout=30).is_success
    assert operator()["found"] == "no automation ['hqinet: tell of late runs']"
    installation.command.json("automations", "apply")
    assert operator()["outcome"] == "ok"


def test_the_doctor_misses_a_trigger_that_was_turned_off(installation):
    def chain() -> dict:
        checks = installation.command("doctor", "--json").stdout
        return next(row for row in json.loads(checks)["checks"] if row["name"] == "chain")

    deployment = installation.deployment("train-on-commit")
    (trigger,) = [
        row
        for row in installation.post("automations/filter")
        if any(do.get("deployment_id") == deployment["id"] for do in row["actions"])
    ]
    url = f"{installation.services().prefect}/automations/{trigger['id']}"
    assert httpx.patch(url, json={"enabled": False}, timeout=30).is_success
    assert chain()["found"] == "train-on-commit: its trigger is off or gone"
    assert httpx.patch(url, json={"enabled": True}, timeout=30).is_success
    assert chain()["outcome"] == "ok"


def test_a_deployment_that_the_file_has_no_more_is_removed(installation):
    former = {"name": "inbox", "tags": ["hqinet"]}
    former["flow_id"] = installation.deployment("ingest-inbox")["flow_id"]
    url = installation.services().prefect
    assert httpx.post(f"{url}/deployments/", json=former, timeout=30).is_success
    code = "from flows.operations.deployment import remove_former; remove_former()"
    variables = installation.command.environment | {"PREFECT_API_URL": url}
    subprocess.run([sys.executable, "-c", code], env=variables, check=True)
    names = {row["name"] for row in installation.post("deployments/filter")}
    assert names == {row["name"] for row in FILE["deployments"]}


def test_an_automation_that_expects_nothing_is_refused():
    from prefect.events.actions import DoNothing
    from prefect.events.schemas.automations import Automation, EventTrigger, Posture

    trigger = EventTrigger.model_validate(
        {"expects": ["hqinet.model.registered"], "posture": Posture.Reactive}
    )
    broad = Automation(
        id="7b1a2c9e-3ed5-4f39-a3a9-6c7a2b3c4d5e",
        name="broad",
        trigger=trigger,
        actions=[DoNothing()],
    )
    with pytest.raises(AutomationError, match="'broad' expects no event by name"):
        require_narrow([broad])


def queue_what_nobody_takes(installation, series) -> None:
    """Put a series into the outbox that has waited as long as one may."""
    folder = series("L300", slices=3).write(installation.home / "1.2.3")
    now = datetime.now(UTC)
    job = Job(folder=folder, destination="nowhere", queued=now - OLDEST, due=now)
    files.write(installation.home / "outbox/nowhere/1.2.3.json", job.model_dump_json().encode())


@pytest.fixture(scope="module")
def champion(installation, pair, series) -> dict:
    """The run that promoted a model, of a delivery that only lay in the inbox."""
    inbox = installation.home / "inbox"
    for number in range(5):
        pair(inbox, f"L10{number}", seed=number, slices=4, matrix=(48, 56))
    series("L109", seed=9, slices=4, matrix=(48, 56)).write(inbox / "L109" / "Full Dose Images")
    installation.start("ingest-inbox", inbox="inbox", quiet=0)
    installation.ended("ingest-inbox")
    # Both fail meanwhile, and are told of.
    installation.start("ingest-inbox", inbox="nowhere")
    queue_what_nobody_takes(installation, series)
    installation.ended("train-on-commit", 240)
    installation.ended("evaluate-on-version")
    return installation.ended("promote-on-report")


def test_an_inbox_becomes_a_champion(installation, champion):
    assert champion["state"]["name"] == "Completed"
    (model,) = installation.command.json("models")["models"]
    assert model["aliases"] == ["champion"]


def test_a_low_dose_series_is_restored_by_that_champion(installation, champion, series):
    study = installation.home / "denoise-inbox" / "study"
    series("L300", "Low Dose Images", seed=30, low=True, slices=4, matrix=(48, 56)).write(study)
    installation.start("denoise-inbox", quiet=0, strict=False)
    installation.ended("denoise-inbox")
    (first, *_) = sorted((installation.home / "denoised").glob("*/*.dcm"))
    image = pydicom.dcmread(first)
    assert "model 1" in image.DerivationDescription
    assert Path(image.filename).parent.name == image.SeriesInstanceUID


@pytest.fixture(scope="module")
def killed(installation, champion, pair) -> None:
    """A second delivery was committed, and all died in the midst of the training on it."""
    # The sixth patient is one to train on; to measure more of them would take longer.
    pair(installation.home / "inbox", "L200", seed=20, slices=4, matrix=(48, 56))
    installation.start("ingest-inbox", inbox="inbox", quiet=0)
    die_in_training(installation)


KILLED = ("prefect", "worker-cpu", "worker-gpu")


def die_in_training(installation) -> None:
    """Kill Prefect's server, both workers and the training, as a machine that loses power would."""
    runs = installation.home / "runs"
    installation.wait(lambda: len(list(runs.glob("*/checkpoint.pt"))) == 2, 180, "a checkpoint")
    known = [processes.find(installation.service(name).process) for name in KILLED]
    families = [one for process in known for one in processes.family(process)]
    assert any(map(processes.is_flow_run, families))
    installation.command.json("backup", installation.home.with_name("live.tar"))
    for process in families:
        with suppress(psutil.NoSuchProcess):
            process.kill()


# While the heartbeat of the training is missed, which takes most of a minute:
def test_a_command_uses_the_server_that_runs_again(installation, killed):
    def judged() -> list[dict]:
        found = installation.post("flow_runs/filter", flows={"name": {"any_": ["promote"]}})
        return [run for run in found if run["parent_task_run_id"] is None]

    before = installation.wait(judged, 120, "Prefect's server")
    refused = installation.command("promote")
    assert refused.returncode == 1
    assert "version 1 is the champion already" in refused.stderr
    assert len(judged()) == len(before) + 1


def test_a_flow_run_that_lost_its_worker_is_ended(installation, killed):
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)", processes.ENGINE]
    variables = os.environ | {"HQINET_HOME": str(installation.home)}
    with subprocess.Popen(sleeping, env=variables) as lost:
        installation.wait(lambda: lost.poll() is not None, 30, "its end")
    assert lost.returncode == -signal.SIGTERM
    assert "has lost its worker" in (installation.home / "logs" / "supervisor.log").read_text()


@pytest.fixture(scope="module")
def second(installation, killed) -> dict:
    """The run that judged what was trained on the second delivery."""
    return installation.ended("promote-on-report", 600, of=2)


def test_a_second_delivery_becomes_a_verdict_though_all_died_meanwhile(installation, second):
    ended = {"promoted": "Completed", "refused": "Refused"}
    newer, first = installation.command.json("models")["models"]
    assert (first["version"], newer["version"], newer["verdict_commit"]) == (1, 2, "2")
    assert second["state"]["name"] == ended[newer["verdict"]]
    # The champion was evaluated on the second commit, too, and nobody judged it by that.
    assert len(installation.runs("promote-on-report")) == 2
    assert {name: installation.service(name).starts for name in KILLED} == dict.fromkeys(KILLED, 2)


def test_the_training_that_died_gave_its_place_back_and_went_on(installation, second):
    run, _ = installation.runs("train-on-commit")
    states = installation.states(run)
    names = [state["name"] for state in states]
    last = ["Running", "Crashed", "AwaitingRetry", "Pending", "Submitting", "Running", "Completed"]
    assert names[-len(last) :] == last
    running, crashed = (datetime.fromisoformat(row["timestamp"]) for row in states[-7:-5])
    assert "heartbeat" in states[-6]["message"]
    assert (crashed - running).total_seconds() < 120
    # One run in MLflow: the second attempt went on with what the first had begun.
    jobs = [job.read_text() for job in (installation.home / "runs").glob("*/run.json")]
    assert len(jobs) == 2
    assert sum(run["id"] in job for job in jobs) == 1


def test_the_operator_was_told_what_ended_badly_and_why(installation, second):
    told = [row["body"] for row in installation.operator.told]
    assert any("Failed" in body and "/nowhere is not there: make it" in body for body in told), told
    assert any("Refused" in body and "1 refused, the first: L109: " in body for body in told), told
    assert sum("Series 1.2.3 is not sent to nowhere any more." in body for body in told) == 1, told


@pytest.fixture(scope="module")
def endless(installation, second) -> dict:
    """The run of a training that does not end by itself."""
    runs = installation.home / "runs"
    run = installation.start("train-on-commit", overrides=["schedule.epochs = 100000"])
    installation.wait(lambda: len(list(runs.glob("*/checkpoint.pt"))) == 3, 120, "a checkpoint")
    return run


def test_a_study_does_not_wait_for_a_training(installation, endless, series):
    study = installation.home / "denoise-inbox" / "later"
    series("L301", "Low Dose Images", seed=31, low=True, slices=4, matrix=(48, 56)).write(study)
    installation.start("denoise-inbox", quiet=0, strict=False)
    installation.ended("denoise-inbox", of=2)
    assert len({file.parent for file in (installation.home / "denoised").glob("*/*.dcm")}) == 2
    assert installation.states(endless)[-1]["type"] == "RUNNING"


def test_a_cancelled_training_ends_and_gives_its_place_back(installation, endless):
    runs, run = installation.home / "runs", endless
    installation.post(f"flow_runs/{run['id']}/set_state", state={"type": "CANCELLING"})
    names = lambda: [state["name"] for state in installation.states(run)]  # noqa: E731
    installation.wait(lambda: names()[-1] == "Cancelled", 60, "its end")
    (job,) = [file for file in runs.glob("*/run.json") if run["id"] in file.read_text()]
    with held(job.parent):
        assert load_checkpoint(job.parent / "checkpoint.pt")["step"] > 0
    with closing(sqlite3.connect(installation.home / "mlflow" / "mlflow.db")) as database:
        asked = "SELECT status FROM runs WHERE run_uuid = ?"
        assert database.execute(asked, (job.parent.name,)).fetchone() == ("KILLED",)
    queue = installation.command.json("status")["queue"]
    assert {row["pool"]: row["running"] for row in queue}["hqinet-gpu"] == 0
    # Nobody starts again what somebody cancelled, though its process says that it crashed.
    log = installation.home / "logs" / "watch.log"
    time.sleep(2 * EVERY)
    assert names()[-1] == "Cancelled"
    assert run["name"] not in log.read_text() or "It was cancelled." in log.read_text()


def test_logs_are_json_lines_and_name_no_person(installation, second):
    for log in (installation.home / "logs").glob("*.log"):
        text = log.read_text()
        assert "Name^" not in text, log
        lines = text.splitlines()
        if log.stem not in {"supervisor", "watch", "send"}:
            # Prefect and MLflow greet whoever starts them.
            lines = [line for line in lines if line.startswith("{")]
        for line in map(json.loads, lines):
            assert {"time", "message"} <= line.keys()
    runs = (installation.home / "logs" / "worker-cpu.log").read_text()
    name = installation.runs("promote-on-report")[0]["name"]
    assert f'"flow_run": "{name}"' in runs


def test_down_ends_workers_then_servers_within_fifteen_seconds(installation):
    logs = {log: log.stat().st_size for log in (installation.home / "logs").glob("*.log")}
    started = datetime.now().astimezone()
    ended = installation.command.json("down")
    assert ended == {"ended": True}
    assert (datetime.now().astimezone() - started).total_seconds() < 15
    known = read(installation.home)
    assert not any(row.runs for row in known.services)
    for log, before in logs.items():
        assert b"Traceback" not in log.read_bytes()[before:], log
    status = installation.command("status", "--json")
    assert status.returncode == 1
    assert '"state": "down"' in status.stdout
    assert installation.command.json("down") == {"ended": False}


def test_a_backup_of_services_at_work_becomes_a_home_again(installation, second):
    home = installation.home
    home.rename(home.with_name("former"))
    with tarfile.open(home.with_name("live.tar")) as tar:
        tar.extractall(home, filter="data")
    # As it was in the midst of the second training.
    (model,) = installation.command.json("models")["models"]
    assert (model["version"], model["aliases"]) == (1, ["champion"])
    assert installation.command.json("dataset", "show")["commit"] == 2
    assert installation.command("dataset", "verify", "--deep").returncode == 0
    with closing(sqlite3.connect(home / "prefect" / "prefect.db")) as database:
        asked = "SELECT count(*) FROM flow_run WHERE state_type = 'RUNNING'"
        assert database.execute(asked).fetchone()[0] >= 1
