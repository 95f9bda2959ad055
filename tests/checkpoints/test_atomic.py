"""Checkpoints are whole or not there."""

from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.atomic import AtomicCheckpointIO


def full_disk(checkpoint: Any, path: Path) -> None:
    Path(path).write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": torch.tensor(1)}, path)
    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match=r"cannot write .*last\.ckpt .*No space left on device.*; the file before it is"):
        AtomicCheckpointIO().save_checkpoint({"step": torch.tensor(2)}, path)
    with pytest.raises(OSError, match="no file was left there"):
        AtomicCheckpointIO().save_checkpoint({"step": torch.tensor(2)}, tmp_path / "best.ckpt")
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert AtomicCheckpointIO().load_checkpoint(path) == {"step": torch.tensor(1)}
