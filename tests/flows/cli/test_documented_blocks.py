"""Every block of commands in README and docs, run by a shell as a reader would.

What a document makes up stands for files of the test (`STAND_INS`); what is not run is in `NOT_RUN`
with the reason. The blocks share a home and its services, and run in the order of the documents.
"""

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# Under load a block of four commands, each of which imports torch, takes minutes.
pytestmark = [pytest.mark.documents, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[3]
OPERATE = ROOT / "docs" / "operate.md"
DOCUMENTS = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("get-started", "ingest", "dataset", "train")),
    *(ROOT / "docs" / f"{name}.md" for name in ("denoise", "gpu", "operate")),
]
PYTHON = ("import ", "from ")
SHELL = ("hqinet ", "export ", ". ", "eval ", "find ", "prefect ", "PREFECT_", "HQINET_")
NOT_RUN = {
    "hqinet fetch": "reads the public collection over the network: tests/storage/collections",
    "hqinet denoise SOURCE": "a synopsis",
    "export HQINET_CLUSTER__WHERE": "settings of other machines: tests/flows/compute",
    "HQINET_CLUSTER__WHERE": "settings of other machines: tests/flows/compute",
    "export HQINET_HOME=/shared": "two machines: tests/flows/test_train.py",
    "export MLFLOW_FLASK": "a server that stays: tests/flows/operations/test_server.py",
    "hqinet down\ngit pull": "changes the checkout",
}
"""Beginnings of blocks, or of lines."""
LATEST = 'import json, sys; print(json.load(sys.stdin)["models"][0]["run"])'
STAND_INS = {
    # The services are not ended where the next block would only start them again.
    "# the rest happens: commit, model, report, verdict\nhqinet status\nhqinet down": "",
    "hqinet down        # runs": "# runs",
    "HQINET_HOME=/srv/ct hqinet": "HQINET_HOME={folder}/new/ct-home hqinet",
    "new:/srv/ct": "{folder}/new/ct-home",
    "/srv/ct": "{folder}/ct-home",
    "$PWD/ct-home": "{folder}/ct-home",
    "/srv/": "{folder}/",
    "/mnt/": "{folder}/",
    "/backup/": "{folder}/",
    " /data/": " {folder}/",
    "hqinet-home/demo-cohort/Synthetic-LDCT/SYN-A01": "{folder}/ldct/Collection/L101",
    "study/ restored/": "{folder}/ldct/Collection/L102 {folder}/derived",
    "FILE.dcm|FOLDER": "{folder}/derived/*/",
    "FILE.dcm  ": "{folder}/derived/*/0001.dcm  ",
    "SERIES|PATIENT": "{folder}/derived/*/",
    "--recipe mine.toml": "--recipe {folder}/mine.toml",
    "--recipe fast": "--recipe {folder}/mine.toml",
    "RECIPE=fast": "RECIPE={folder}/mine.toml",
    "--from starter": "--from starter --set schedule.epochs=1 --set schedule.steps_per_epoch=1",
    "--resume RUN": f"--resume $(hqinet models --json | python -c '{LATEST}')",
    "dataset diff 4 5": "dataset diff 1 2",
    "hqinet report compare": "hqinet evaluate --model 2; hqinet report compare",
    "--model 3 --policy strict.toml": "--model 2 --policy {folder}/lenient.toml",
    "HOST=0.0.0.0": "HOST=127.0.0.1",
    "PREFECT_SERVER_API_AUTH": "hqinet down; PREFECT_SERVER_API_AUTH",
}
POLICY = """
patients = 2
margin = -100.0
anatomy_loss = 100.0
patient_loss = 100.0
"""


@dataclass(frozen=True)
class Block:
    """Commands, or Python, of a document."""

    document: Path
    text: str

    @property
    def is_python(self) -> bool:
        return self.text.startswith(PYTHON)

    def stood_in(self, folder: Path) -> str:
        """The text with what the test has in place of what the document makes up."""
        text = self.text
        for name, stand_in in STAND_INS.items():
            text = text.replace(name, stand_in.replace("{folder}", str(folder)))
        return text

    def __str__(self) -> str:
        return f"{self.document.stem}: {self.text.splitlines()[0][:40]}"


def blocks(document: Path) -> list[Block]:
    """The blocks of a document that can be run, without the lines that are not."""
    found = re.findall(r"^```\w*\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)
    programs = [text for text in found if text.startswith((*SHELL, *PYTHON))]
    wholes = tuple(name for name in NOT_RUN if name != "hqinet fetch")
    return [
        Block(document, re.sub(r"^hqinet fetch.*\n", "", text))
        for text in programs
        if not text.startswith(wholes)
    ]


EVERY = [block for document in DOCUMENTS for block in blocks(document)]


@dataclass(frozen=True)
class Reader:
    """Types what the documents say into a shell, in a folder of its own for each document."""

    folder: Path
    environment: dict[str, str]

    def types(self, block: Block) -> subprocess.CompletedProcess[str]:
        text = block.stood_in(self.folder)
        trap = """trap 'echo "exit status $?: $BASH_COMMAND" >&2' ERR\n"""
        return subprocess.run(
            [sys.executable, "-c", text] if block.is_python else ["bash", "-c", trap + text],
            cwd=self._place(block.document.stem),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=850,
        )

    def _place(self, document: str) -> Path:
        place = self.folder / document
        if not place.exists():
            place.mkdir()
            (place / ".venv").symlink_to(sys.prefix)
            (place / "constraints.txt").symlink_to(ROOT / "constraints.txt")
            for name in ("ct-home", "hqinet-home"):
                (place / name).symlink_to(self.folder / "ct-home")
        return place


@pytest.fixture(scope="module")
def reader(tiny_recipe, pair, tmp_path_factory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("reader")
    patients = {"ldct": range(101, 106), "delivery-7": [107], "delivery": [108]}
    for delivery, numbers in patients.items():
        for number in numbers:
            pair(folder / delivery, f"L{number}", seed=number, slices=12, matrix=(48, 56))
    (folder / "new").mkdir()
    recipe = Path(tiny_recipe).read_text()
    (folder / "mine.toml").write_text(recipe.replace("epochs = 2", "epochs = 20"))
    (folder / "lenient.toml").write_text(POLICY)
    for name in ("rules", "destinations"):
        (text,) = re.findall(rf"```\n(# {name}\.toml.*?)```", OPERATE.read_text(), re.DOTALL)
        (folder / f"{name}.toml").write_text(text)
    reader = Reader(folder, environment(folder))
    try:
        started = reader.types(Block(OPERATE, "hqinet up"))
        assert started.returncode == 0, started.stderr
        yield reader
    finally:
        for home in ("ct-home", "new/ct-home"):
            reader.types(Block(OPERATE, f"HQINET_HOME={folder / home} hqinet down"))


def environment(folder: Path) -> dict[str, str]:
    """That of a reader who has set what operate.md sets for the receiver."""
    outside = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT_", "HQINET_", "MLFLOW_", "XDG_"))
    }
    (settings,) = (x for x in EVERY if x.text.startswith("export HQINET_RECEIVE"))
    words = shlex.split(settings.stood_in(folder), comments=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return (
        outside
        | dict(word.split("=", 1) for word in words if word.startswith("HQINET_RECEIVE"))
        | {
            "HOME": str(folder),
            "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
            "HQINET_HOME": str(folder / "ct-home"),
            "HQINET_POLICY": str(folder / "lenient.toml"),
            "HQINET_CLUSTER__WORKERS": "1",
            "HQINET_INGEST__SPLIT_TARGETS": '{"train": 0.5, "validation": 0.15, "test": 0.35}',
            "HQINET_RECEIVE__PORT": str(port),
            "HQINET_SERVICES__PREFECT_PORT": str(port + 1),
            "HQINET_SERVICES__MLFLOW_PORT": str(port + 2),
        }
    )


@pytest.mark.parametrize("block", EVERY, ids=str)
def test_a_documented_block_does_what_it_says(block: Block, reader):
    done = reader.types(block)
    failed = re.findall(r"^exit status (\d+): (.*)$", done.stderr, re.MULTILINE)
    assert (failed, done.returncode) == ([], 0), done.stdout + done.stderr


def test_what_is_not_run_stands_in_the_documents():
    texts = [document.read_text() for document in DOCUMENTS]
    for name in [*NOT_RUN, *STAND_INS]:
        assert any(name in text for text in texts), name
