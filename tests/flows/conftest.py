"""One Prefect server for all flow tests, a home for each, and a cohort small enough to train on."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster

# `flows` enters a home when it is imported, which collecting these tests does.
_HOME = tempfile.TemporaryDirectory(prefix="hqinet-tests-", ignore_cleanup_errors=True)
os.environ["HQINET_HOME"] = _HOME.name
os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"

HQINET = Path(sys.executable).with_name("hqinet")
Pair = Callable[..., Path]

RECIPE = """
# As little as runs every part of a training.
seed = 1

[model]
width = 0.03
norm = "none"
output = "noise_residual"
init = "he"

[loss]
l1 = 1.0
per_noise = true

[optimiser]
learning_rate = 0.001

[schedule]
epochs = 2
steps_per_epoch = 3

[sampling]
batch = 2
patch = 32
"""


class Command:
    """Runs `hqinet` with a home of its own, in an empty folder, with an empty user's home."""

    program = (HQINET,)

    def __init__(self, folder: Path, **environment: str) -> None:
        self.home = folder / "home"
        self.outside = {name: folder / name for name in ("cwd", "user")}
        for path in self.outside.values():
            path.mkdir()
        self.environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("PREFECT_", "HQINET_", "MLFLOW_", "XDG_"))
        } | {"HOME": str(self.outside["user"]), **environment}

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.program, *map(str, arguments), "--home", self.home],
            cwd=self.outside["cwd"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    def json(self, *arguments: object, status: int = 0) -> dict:
        """The object on standard output of a command run with --json."""
        done = self(*arguments, "--json")
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="session")
def hqinet() -> type[Command]:
    """The command: `hqinet(folder)(arguments)` runs it with a home below that folder."""
    return Command


@pytest.fixture(scope="session", autouse=True)
def prefect_server() -> Iterator[str]:
    """The address of a Prefect server with a database of its own."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield PREFECT_API_URL.value()


@pytest.fixture(scope="session")
def dask_cluster() -> Iterator[LocalCluster]:
    """A cluster of two worker processes, that has an address as any other."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of its own for each file of tests."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HQINET_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a recipe that trains in a second."""
    file = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    file.write_text(RECIPE)
    return str(file)


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory: pytest.TempPathFactory, pair: Pair, series: type) -> Path:
    """Five pairs of four slices, 48 x 56 pixels, and one patient without low dose."""
    root = tmp_path_factory.mktemp("tiny")
    for number in range(5):
        pair(root, f"L10{number}", seed=number, slices=4, matrix=(48, 56))
    series("L109", seed=9, slices=4, matrix=(48, 56)).write(root / "L109" / "Full Dose Images")
    return root
