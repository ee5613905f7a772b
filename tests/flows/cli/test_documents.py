"""Each `hqinet` command in README and docs is one that there is, with options that it takes."""

import re
import shlex
from pathlib import Path

import pytest
from typer import Context
from typer.core import TyperGroup
from typer.main import get_command

from flows.cli.main import app

ROOT = Path(__file__).parents[3]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_ENDS = ("&&", "||", "|", ";", "&")


def commands(document: Path) -> list[str]:
    """The lines of a document's blocks of code that call `hqinet`, without what is before it."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    # A synopsis with optional parts is no command.
    return [
        line[line.index("hqinet ") :]
        for line in lines
        if re.match(r"(?:\$ )?(?:\w+=\S+ )*hqinet ", line) and "[" not in line
    ]


EVERY = [(path.name, line) for path in DOCUMENTS for line in commands(path)]


@pytest.mark.parametrize(("name", "line"), EVERY)
def test_a_documented_command_is_understood(name: str, line: str):
    _, *words = shlex.split(line, comments=True)
    end = min((words.index(mark) for mark in _ENDS if mark in words), default=len(words))
    understand(get_command(app), words[:end])


def understand(command: TyperGroup, words: list[str]) -> None:
    """Parse the words of a command and of its subcommands, as running it would."""
    context = Context(command, info_name="hqinet")
    while isinstance(command, TyperGroup) and words:
        _, found, words = command.resolve_command(context, words)
        assert found is not None, words
        if not isinstance(found, TyperGroup):
            found.make_context(found.name, words, parent=context)
            return
        command = found


def test_documents_name_many_commands_and_a_wrong_one_would_be_found():
    assert len(EVERY) > 40
    assert {name for name, _ in EVERY} >= {"README.md", "train.md", "operate.md"}
    with pytest.raises(Exception, match="No such option"):
        understand(get_command(app), ["ingest", "folder", "--simulat-dose", "0.25"])
