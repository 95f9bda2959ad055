"""Files and checkpoints are whole or not there."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from checkpoints.atomic import AtomicCheckpointIO, Counter, save, saved_bytes, tensor_bytes, write_atomically, writing


class FullDisk:
    """An open file on a disk with space for 100 bytes."""

    def __init__(self, file: Any) -> None:
        self.file, self.free = file, 100

    def flush(self) -> None:
        self.file.flush()

    def write(self, data: Any) -> int:
        self.free -= len(data)
        if self.free < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written: int = self.file.write(data)
        return written


def test_a_full_disk_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": torch.tensor(1)}, path)
    whole = torch.save

    def save_to_the_disk(value: Any, file: Any) -> None:
        whole(value, file if isinstance(file, Counter) else FullDisk(file))

    monkeypatch.setattr(torch, "save", save_to_the_disk)
    size = rf"{path.stat().st_size / 1e6:.1f} MB are needed, .* MB are free.*; the old file is unchanged"
    with pytest.raises(OSError, match=rf"cannot write .*last\.ckpt \(No space left on device, {size}"):
        AtomicCheckpointIO().save_checkpoint({"step": torch.tensor(2)}, path)
    with pytest.raises(OSError, match="no file was left there"):
        AtomicCheckpointIO().save_checkpoint({"step": torch.tensor(2)}, tmp_path / "best.ckpt")
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert AtomicCheckpointIO().load_checkpoint(path) == {"step": torch.tensor(1)}


def test_bytes_that_a_checkpoint_needs(tmp_path: Path) -> None:
    checkpoint = {"weights": torch.zeros(1000, 300), "epoch": 3}
    save(checkpoint, tmp_path / "file")
    assert saved_bytes(checkpoint) == pytest.approx((tmp_path / "file").stat().st_size, rel=1e-3)
    assert tensor_bytes([torch.zeros(10), torch.zeros(3, dtype=torch.bfloat16)]) == 46


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


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            r"cannot write new \(No space left on device, [\d.]+ MB are ",
        ),
        (PermissionError(errno.EACCES, "Permission denied"), r"cannot write new \(Permission denied\); nothing was"),
        (
            SafetensorError("I/O error: No space left on device (os error 28)"),
            r"\(os error 28\), [\d.]+ MB are free in",
        ),
    ],
)
def test_reason_of_the_system(error: Exception, message: str) -> None:
    with pytest.raises(OSError, match=message), writing(Path("new")):
        raise error


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("of a shape"), SafetensorError("header too large")])
def test_other_errors_stay(error: Exception) -> None:
    with pytest.raises(type(error)) as found, writing(Path("new")):
        raise error
    assert found.value is error
