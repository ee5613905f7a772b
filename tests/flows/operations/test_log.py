"""Lines of the services' logs."""

import json
import subprocess
import sys
from pathlib import Path

import yaml

from flows.operations import log
from flows.operations.deployment import FILE
from flows.operations.services import environment


def test_a_line_is_an_object_with_its_time(capsys):
    log.say('a "quoted" word\nand a second line')
    said = json.loads(capsys.readouterr().out)
    assert said["message"] == 'a "quoted" word\nand a second line'
    assert said["time"].endswith("+00:00")


def logged(code: str, home: Path) -> list[dict]:
    """What a service's process logs: of its own, since a configuration of logging stays."""
    command = [sys.executable, "-c", f"import logging\n{code}"]
    done = subprocess.run(
        command,
        env=environment(home, "http://127.0.0.1:9/api"),
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_prefect_logs_in_the_same_way_and_names_the_run(tmp_path):
    code = """
from prefect.logging.configuration import setup_logging
setup_logging()
run = logging.getLogger("prefect.workers.x")
run.info("taken: %s", 3, extra={"flow_run_name": "quiet-owl"})
try:
    1 / 0
except ZeroDivisionError:
    run.exception("broken")
"""
    taken, broken = logged(code, tmp_path)
    assert taken.pop("time")
    assert taken == {
        "level": "info",
        "logger": "prefect.workers.x",
        "flow_run": "quiet-owl",
        "message": "taken: 3",
    }
    assert "ZeroDivisionError: division by zero" in broken["message"]


def test_a_server_of_uvicorn_logs_in_the_same_way(tmp_path):
    code = f"""
import json, logging.config, pathlib
logging.config.dictConfig(json.loads(pathlib.Path({str(log.UVICORN)!r}).read_text()))
logging.getLogger("uvicorn.access").info("%s %d", "/health", 200)
"""
    (said,) = logged(code, tmp_path)
    assert said["logger"] == "uvicorn.access"
    assert said["message"] == "/health 200"


def test_containers_log_so_too():
    services = yaml.safe_load((FILE.parent / "compose.yaml").read_text())
    assert services["x-environment"].items() >= log.JSON_LINES.items()


def test_a_log_that_grew_large_is_kept_once_and_begun_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(log, "LARGEST_LOG", 10)
    with log.open_log(tmp_path / "watch.log") as file:
        file.write(b"a long line of the log\n")
        file.flush()
        log.shorten(tmp_path)
        file.write(b"new\n")
    assert (tmp_path / "watch.log").read_text() == "new\n"
    assert (tmp_path / "watch.log.1").read_text() == "a long line of the log\n"
