"""Files and checkpoints are whole or not there."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.atomic import AtomicCheckpointIO, write_atomically


def full_disk(checkpoint: Any, path: Path) -> None:
    Path(path).write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": torch.tensor(1)}, path)
    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(
        OSError, match=r"cannot write .*last\.ckpt .*No space left on device.*; the old file is unchanged"
    ):
        AtomicCheckpointIO().save_checkpoint({"step": torch.tensor(2)}, path)
    with pytest.raises(OSError, match="no file was left there"):
        AtomicCheckpointIO().save_checkpoint({"step": torch.tensor(2)}, tmp_path / "best.ckpt")
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert AtomicCheckpointIO().load_checkpoint(path) == {"step": torch.tensor(1)}


def refuse(path: Path) -> None:
    path.write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(path: Path) -> None:
    path.write_text("half")
    raise KeyboardInterrupt


@pytest.mark.parametrize("write", [refuse, interrupt])
@pytest.mark.parametrize("before", ["old", None])
def test_a_failing_writer_leaves_what_was_there(
    write: Callable[[Path], None], before: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "file.json"
    if before is not None:
        path.write_text(before)
    with pytest.raises((OSError, KeyboardInterrupt)):
        write_atomically(path, write)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == ([("file.json", "old")] if before else [])


def test_a_full_disk_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("old")

    def replace(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", lambda path: path.write_text("new"))
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    seen = []

    def write(temporary: Path) -> None:
        temporary.write_text("ne")
        seen.append(path.exists())
        temporary.write_text("new")

    write_atomically(path, write)
    assert seen == [False]
    assert path.read_text() == "new"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_permissions_follow_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", lambda path: path.write_text("x"))
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
