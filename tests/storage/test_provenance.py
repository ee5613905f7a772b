import subprocess
from importlib.metadata import version

from storage import provenance


def git(folder, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_version_of_a_checkout_has_its_revision_and_says_when_files_differ(tmp_path):
    git(tmp_path, "init")
    file = tmp_path / "code.py"
    file.write_text("a = 1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    revision = git(tmp_path, "rev-parse", "--short=12", "HEAD")
    assert provenance._revision(tmp_path) == revision
    file.write_text("a = 2")
    assert provenance._revision(tmp_path) == f"{revision}-dirty"


def test_a_folder_within_another_checkout_has_no_revision(tmp_path):
    git(tmp_path, "init")
    inner = tmp_path / "site-packages"
    inner.mkdir()
    assert provenance._revision(inner) == ""


def test_equal_versions_are_equal_code_where_nothing_was_changed():
    assert provenance.is_exact("0.1.0")
    assert provenance.is_exact("0.1.0+1a2b3c4d5e6f")
    assert not provenance.is_exact("0.1.0+1a2b3c4d5e6f-dirty")
    assert not provenance.is_exact("not installed")


def test_it_starts_with_the_installed_version():
    assert provenance.code_version().split("+")[0] == version("hqinet")
