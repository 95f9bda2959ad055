"""Atomic files: written under a temporary name, then renamed."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name, then renames it: a full disk does not damage the old checkpoint.

    Lightning's own writer copies the file to its final name, which leaves half a file there if the disk is full.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write one checkpoint.

        Raises:
            OSError: If it cannot be written, with the path and the state of the old file.
        """
        try:
            write_atomically(Path(path), lambda temporary: torch.save(checkpoint, temporary))
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError with the message of the system
            before = "the old file is unchanged" if Path(path).exists() else "no file was left there"
            raise OSError(f"cannot write {path} ({error}); {before}") from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path in the same folder, then rename that file: no reader gets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(temporary))
        os.chmod(temporary, 0o666 & ~current_umask())  # because files of mkstemp are private
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
