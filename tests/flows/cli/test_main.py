"""The command as its users run it, in processes; in one file, for its tests share one home."""

import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from flows.cli import main as cli
from flows.cli.pipeline import RECIPES
from flows.operations.server import SERVER
from hqinet.training.recipe import recipe_names
from storage.dataset.versions import Dataset


@pytest.fixture(scope="module")
def command(hqinet, tmp_path_factory, prefect_server):
    return hqinet(tmp_path_factory.mktemp("cli"), PREFECT_API_URL=prefect_server)


@pytest.fixture(scope="module")
def first_ingest(command, tiny_cohort) -> subprocess.CompletedProcess[str]:
    return command("ingest", tiny_cohort, "--cohort", "tiny", "--json")


@pytest.fixture(scope="module")
def ingested(first_ingest) -> dict:
    assert first_ingest.returncode == 0, first_ingest.stderr
    return json.loads(first_ingest.stdout)


@pytest.fixture(scope="module")
def trained(command, ingested, tiny_recipe) -> dict:
    """By a recipe that comes from a pipe, which can be read but once."""
    piped = f"{command.program[0]} train --recipe <(cat {tiny_recipe}) --json"
    done = subprocess.run(
        ["bash", "-c", f"{piped} --home {command.home}"],
        env=command.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_ingest_prints_what_it_did(ingested):
    assert ingested["commit"] == 1
    assert ingested["unchanged"] == 0
    assert {tuple(sorted(row)) for row in ingested["accepted"]} == {("patient", "slices", "split")}
    (refused,) = ingested["refused"]
    assert refused["patient"] == "L109"
    assert refused["code"] == "no_low_dose"
    assert refused["source"] == "L109/Full Dose Images"


def test_the_same_source_again_makes_no_commit_and_no_home(command, first_ingest, tiny_cohort):
    assert first_ingest.stderr == f"hqinet: made the home {command.home}\n"
    done = command("ingest", tiny_cohort, "--cohort", "tiny", "--strict", "--json")
    assert done.returncode == 3
    assert "made the home" not in done.stderr
    again = json.loads(done.stdout)
    assert again["commit"] == 1
    assert again["accepted"] == []
    assert again["unchanged"] == 5


def test_dataset_show_and_log(command, ingested):
    shown = command.json("dataset", "show", "--commit", 1)
    assert shown["parent"] == 0
    assert {row["patient"]: row["split"] for row in shown["patients"]} == {
        row["patient"]: row["split"] for row in ingested["accepted"]
    }
    for row in shown["patients"]:
        assert (row["slices"], row["matrix"], row["spacing"]) == (4, [48, 56], [3.0, 0.7, 0.8])
        assert (row["anatomy"], row["dose_fraction"]) == ("abdomen", 0.25)
    assert [row["commit"] for row in command.json("dataset", "log")["commits"]] == [1, 0]


def test_dataset_upkeep(command, ingested, tmp_path):
    assert command.json("dataset", "verify", "--deep")["problems"] == []
    assert len(command.json("dataset", "diff", 0, 1)["added"]) == 5
    assert command.json("dataset", "gc", "--dry-run")["volumes"] == []
    splits = tmp_path / "splits.csv"
    command.json("dataset", "splits", "export", splits)
    patients = {"train": 3, "validation": 1, "test": 1}
    same = {"commit": 1, "moved": [], "reserved": [], "patients": patients}
    assert command.json("dataset", "splits", "import", splits) == same


def test_splits_are_reserved_when_asked_and_released(hqinet, tmp_path):
    command, splits = hqinet(tmp_path), tmp_path / "splits.csv"
    splits.write_text("patient,split\nL10O,test\n")
    slip = command("dataset", "splits", "import", splits)
    assert slip.returncode == 1
    assert "'L10O'" in slip.stderr.splitlines()[-1]
    reserved = command.json("dataset", "splits", "import", splits, "--reserve")
    assert [row["patient"] for row in reserved["reserved"]] == ["L10O"]
    assert reserved["moved"] == []
    released = command.json("dataset", "splits", "release", "L10O")
    assert released == {"commit": 2, "released": [{"patient": "L10O", "split": "test"}]}
    assert command("dataset", "splits", "release", "L10O").returncode == 1


def test_train_evaluate_promote_and_models(command, trained):
    assert (trained["commit"], trained["steps"]) == (1, 6)
    done = command("evaluate", "--model", trained["model"], "--json")
    assert done.stderr.count(": restored and measured") == 1
    evaluated = json.loads(done.stdout)
    assert Path(evaluated["report"], "report.html").is_file()
    assert {"psnr", "ssim_window"} <= set(evaluated["patients"][0]["restored"])
    judged = command("promote", "--model", trained["model"], "--json")
    verdict = json.loads(judged.stdout)
    assert judged.returncode == {"promoted": 0, "refused": 3}[verdict["verdict"]]
    assert {row["rule"] for row in verdict["rules"]} >= {"lineage complete"}
    (version,) = command.json("models")["models"]
    assert version["verdict"] == verdict["verdict"]


def test_alone_it_brings_its_own_server_and_writes_nothing_outside_the_home(
    hqinet, tmp_path, tiny_cohort
):
    alone = hqinet(tmp_path)
    assert len(alone.json("ingest", tiny_cohort)["accepted"]) == 5
    assert (alone.home / "prefect" / "prefect.db").is_file()
    assert [p for folder in alone.outside.values() for p in folder.rglob("*")] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ingest", "/nowhere/at/all"), "/nowhere/at/all"),
        (("pipeline", "/nowhere/at/all"), "/nowhere/at/all"),
        (("dataset", "show", "--commit", 99), "commit 99"),
        (("train", "--recipe", "fsat"), "fast"),
        (("evaluate", "--split", "tset"), "tset"),
        (("promote", "--policy", "lenient"), "lenient"),
        (("pipeline", ".", "--policy", "lenient"), "lenient"),
        (("dataset", "rollback", 42), "42"),
    ],
)
def test_a_users_mistake_is_one_line(command, trained, arguments, says):
    done = command(*arguments)
    assert done.returncode == 1, done.stdout
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert says in done.stderr


@pytest.mark.parametrize(
    ("variable", "verb"), [("PREFECT_API_URL", "promote"), ("HQINET_TRACKING_URI", "models")]
)
def test_a_server_that_is_away_is_one_line(hqinet, tmp_path, command, ingested, variable, verb):
    away = hqinet(tmp_path, **{variable: "http://127.0.0.1:9/api"})
    away.home = command.home
    done = away(verb)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "http://127.0.0.1:9/api" in done.stderr


@pytest.fixture
def adopting() -> Iterator[None]:
    """Orphans become children of this process, as they do of `systemd --user`."""
    subreaper = 36  # PR_SET_CHILD_SUBREAPER
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(subreaper, 1, 0, 0, 0) == 0
    yield
    libc.prctl(subreaper, 0, 0, 0, 0)


def test_the_server_of_a_killed_command_is_ended_by_the_next(hqinet, tmp_path, adopting):
    killed = hqinet(tmp_path)
    # It must get as far as to start its server.
    Dataset(killed.home / "dataset").create()

    def servers() -> list[psutil.Process]:
        running = psutil.process_iter(["cmdline"])
        found = [p for p in running if SERVER in (p.info["cmdline"] or [])]
        return [p for p in found if p.environ().get("HQINET_HOME") == str(killed.home)]

    process = subprocess.Popen(
        [*killed.program, "promote", "--home", killed.home],
        env=killed.environment,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 60
    while not servers() and time.monotonic() < end:
        time.sleep(0.05)
    process.kill()
    process.wait()
    (orphan,) = servers()
    assert orphan.ppid() == os.getpid()
    assert killed("dataset", "log").returncode == 0
    orphan.wait(timeout=30)


def test_env_names_the_same_variables_for_a_shell_and_a_program(hqinet, tmp_path):
    fresh = hqinet(tmp_path)
    variables = fresh.json("env")
    assert variables["HQINET_HOME"] == str(fresh.home)
    lines = fresh("env").stdout.splitlines()
    assert [line.removeprefix("export ").partition("=")[0] for line in lines] == list(variables)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (TimeoutError("nobody answered"), "hqinet: TimeoutError: nobody answered\n"),
        (PermissionError(13, "denied", "/d"), "hqinet: /d: denied: choose another path\n"),
    ],
)
def test_a_failure_of_the_system_is_one_line_too(monkeypatch, capsys, error, line):
    monkeypatch.setattr(cli, "app", Mock(side_effect=error))
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert capsys.readouterr().err == line


def test_an_error_that_a_library_makes_of_ctrl_c_is_ctrl_c(monkeypatch, capsys):
    closed = RuntimeError("the event loop is closed")
    closed.__context__ = KeyboardInterrupt()
    monkeypatch.setattr(cli, "app", Mock(side_effect=closed))
    with pytest.raises(SystemExit, match="130"):
        cli.main()
    assert capsys.readouterr().err == "hqinet: stopped\n"


def test_wrong_usage_exits_2(command):
    assert command("ingest").returncode == 2
    assert command("evaluate", "--moddel", "3").returncode == 2
    assert command("train", "--resume", "abc", "--recipe", "fast").returncode == 2
    assert command("promote", "--rollback", "--model", "1").returncode == 2


def test_help_names_every_recipe():
    assert [name for name in recipe_names() if name not in RECIPES] == []


def test_an_empty_home_says_what_to_do_first_and_starts_no_server(hqinet, tmp_path):
    empty = hqinet(tmp_path)
    empty.home.mkdir()
    for verb in (("dataset", "show"), ("train",), ("evaluate",), ("promote",)):
        done = empty(*verb)
        assert done.returncode == 1
        assert done.stderr == (
            f"hqinet: there is no dataset at {empty.home}/dataset: make one with "
            "`hqinet ingest SOURCE`\n"
        )
    assert not (empty.home / "prefect" / "prefect.db").exists()


def test_tables_for_people_when_not_asked_for_json(command, ingested):
    done = command("dataset", "show")
    assert "L100" in done.stdout
    assert "no_low_dose" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    "verb",
    [("dataset", "show"), ("models",), ("evaluate",), ("promote",), ("report", "compare", 1, 2)],
)
def test_a_mistyped_home_is_said_and_makes_no_folder(hqinet, tmp_path, verb):
    typo = hqinet(tmp_path)
    done = typo(*verb)
    assert done.returncode == 1
    assert done.stderr == (
        f"hqinet: there is no home {typo.home}: check --home and HQINET_HOME; "
        "`hqinet ingest SOURCE` makes a home\n"
    )
    assert not typo.home.exists()


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("HQINET_TRAIN__DEVCE", "cpu", "did you mean HQINET_TRAIN__DEVICE?"),
        ("HQINET_DATASTE", "/d", "did you mean HQINET_DATASET?"),
        ("HQINET_TRAIN__DEVICE", "gpu", "'auto', 'cpu', 'cuda' or 'mps' (got 'gpu')"),
        ("HQINET_CLUSTER__WORKERS", "-1", "HQINET_CLUSTER__WORKERS: "),
    ],
)
def test_a_variable_that_cannot_be_meant_is_refused_by_name(
    hqinet, tmp_path, variable, value, says
):
    mistaken = hqinet(tmp_path, **{variable: value})
    mistaken.home.mkdir()
    done = mistaken("models")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert variable in done.stderr
    assert says in done.stderr


def test_keys_of_a_clusters_arguments_are_its_own_business(hqinet, tmp_path):
    free = hqinet(tmp_path, HQINET_CLUSTER__ARGUMENTS__CORES="4")
    free.home.mkdir()
    assert free.json("models") == {"models": []}


def test_a_gpu_that_is_not_there_is_one_line(hqinet, tmp_path, command, trained, prefect_server):
    asked = hqinet(tmp_path, PREFECT_API_URL=prefect_server, HQINET_EVALUATE__DEVICE="cuda")
    asked.home = command.home
    done = asked("evaluate")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "'cuda' was asked for" in done.stderr


def test_a_recipe_file_that_is_not_there_is_no_misspelt_name(command):
    done = command("train", "--recipe", "./mine.toml")
    assert done.returncode == 1
    assert "recipe file ./mine.toml: No such file" in done.stderr


def test_the_version_is_told(command):
    done = subprocess.run(
        [*command.program, "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("hqinet 0.")


def test_ctrl_c_is_130_and_one_line_whatever_the_verb(hqinet, tmp_path):
    stopped = hqinet(tmp_path)
    # Tests that a script runs in its background ignore Ctrl-C, and so would what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*stopped.program, "demo", "--home", stopped.home],
        env=stopped.environment,
        cwd=stopped.outside["cwd"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    end = time.monotonic() + 150
    # While it makes its cohort: its server is up, and no library is being imported.
    while not list((stopped.home / "demo-cohort").rglob("*.dcm")) and time.monotonic() < end:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "hqinet: stopped"
