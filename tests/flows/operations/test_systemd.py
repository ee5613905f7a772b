"""The user unit of `hqinet up --systemd`, as systemd's own check reads it."""

import os
import shutil
import subprocess
import sys

import pytest

from flows.operations import home as homes
from flows.operations.systemd import write_unit


@pytest.fixture
def unit(tmp_path, monkeypatch):
    """A unit for a home with signs that mean something to systemd."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HQINET_PSEUDONYM_KEY", '100% "secret" \\ key')
    home = tmp_path / "a home, 5% full"
    home.mkdir()
    return write_unit(home), home


def test_it_starts_the_services_of_its_home_with_the_settings_of_the_shell(unit):
    file, home = unit
    lines = file.read_text().splitlines()
    escaped = str(home).replace("%", "%%")
    started = f'ExecStart="{sys.executable}" -m flows.cli.main up --foreground --home "{escaped}"'
    assert started in lines
    assert 'Environment="HQINET_PSEUDONYM_KEY=100%% \\"secret\\" \\\\ key"' in lines
    assert not any(line.startswith('Environment="HQINET_HOME') for line in lines)


def test_it_has_what_lets_it_into_servers_and_stores(unit, monkeypatch):
    names = ["PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"]
    names += ["MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"]
    names += ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"]
    for name in names:
        monkeypatch.setenv(name, f"value of {name}")
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    _, home = unit
    lines = write_unit(home).read_text().splitlines()
    for name in names:
        assert f'Environment="{name}=value of {name}"' in lines
    assert not any("PREFECT_API_URL" in line for line in lines)


def test_nobody_else_can_read_its_secrets_not_even_who_has_the_old_one_open(unit):
    file, home = unit
    file.chmod(0o644)
    with file.open() as old:
        before = old.read()
        file.write_text("")
        write_unit(home)
        old.seek(0)
        assert old.read() == ""
    assert file.stat().st_mode & 0o077 == 0
    assert file.read_text() == before


def test_systemd_finds_nothing_wrong_with_it(unit, tmp_path, monkeypatch):
    program = shutil.which("systemd-analyze")
    assert program, "install Debian's package systemd"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    command = [program, "verify", "--user", unit[0]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_relative_paths_of_settings_are_made_absolute_for_services_that_run_elsewhere(
    monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules.toml").write_text("")
    monkeypatch.setenv("HQINET_RECEIVE__RULES", "rules.toml")
    monkeypatch.setenv("HQINET_DATASET", "ct")
    monkeypatch.setenv("HQINET_RECIPE", "fast")
    homes.settle_paths()
    assert os.environ["HQINET_RECEIVE__RULES"] == str(tmp_path / "rules.toml")
    assert os.environ["HQINET_DATASET"] == str(tmp_path / "ct")
    assert os.environ["HQINET_RECIPE"] == "fast"
    monkeypatch.setenv("HQINET_DATASET", "s3://bucket/ct")
    homes.settle_paths()
    assert os.environ["HQINET_DATASET"] == "s3://bucket/ct"
