"""Checkpoints: whole or not there, and never more than data."""

import io
import pickle
from pathlib import Path

import pytest
import torch

from hqinet.training import checkpoint
from hqinet.training.checkpoint import CheckpointError, cpu_copy, load_checkpoint, save_checkpoint


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    content = {"step": 3, "weights": {"a": torch.arange(3.0)}, "history": [{"loss": 0.1}]}
    save_checkpoint(content, tmp_path / "new" / "c.pt")
    read = load_checkpoint(tmp_path / "new" / "c.pt")
    assert read["step"] == 3
    assert read["history"] == [{"loss": 0.1}]
    assert torch.equal(read["weights"]["a"], torch.arange(3.0))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["c.pt"]


def test_a_kill_while_writing_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint({"step": 1}, path)

    def half(content: object, file: io.BufferedWriter) -> None:
        file.write(b"PK half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint({"step": 2}, path)
    monkeypatch.undo()
    assert load_checkpoint(path)["step"] == 1
    save_checkpoint({"step": 3}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]


class Harmful:
    """Runs code when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("unpickled",))


def test_code_in_a_checkpoint_is_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"format": 2, "weights": Harmful()}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"c\.pt cannot be read as a checkpoint"):
        load_checkpoint(tmp_path / "c.pt")
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not torch", pickle.dumps({"format": 2})[:-3]])
def test_what_is_no_checkpoint_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"c\.pt cannot be read") as caught:
        load_checkpoint(tmp_path / "c.pt")
    assert "\n" not in str(caught.value)


def test_another_format_is_refused(tmp_path: Path) -> None:
    torch.save({"format": 99}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="format 99; this code reads 2"):
        load_checkpoint(tmp_path / "c.pt")
    torch.save([1], tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="format None"):
        load_checkpoint(tmp_path / "c.pt")


def test_a_copy_does_not_follow_the_weights() -> None:
    weight = torch.zeros(2)
    copied = cpu_copy({"w": weight})
    weight += 1
    assert torch.equal(copied["w"], torch.zeros(2))
