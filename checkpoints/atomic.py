"""Atomic files: written under a temporary name, then renamed."""

import errno
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors import SafetensorError


class NotWritten(OSError):
    """A file that cannot be written; the message has its path, the reason of the system and what is left there."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name, then renames it: a full disk does not damage the old checkpoint.

    Lightning's own writer copies the file to its final name, which leaves half a file there if the disk is full.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write one checkpoint.

        Raises:
            NotWritten: If it cannot be written.
        """
        write_atomically(Path(path), lambda temporary: save(checkpoint, temporary), lambda: saved_bytes(checkpoint))


def save(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # because torch's own writer hides the reason of the system, such as a full disk
        torch.save(checkpoint, file)


def saved_bytes(checkpoint: dict[str, Any]) -> int:
    """Bytes of the file that ``save`` writes."""
    counter: Any = Counter()
    torch.save(checkpoint, counter)
    return counter.bytes


class Counter(io.RawIOBase):
    """File that counts the bytes written to it, and keeps none."""

    bytes = 0

    def write(self, data: Any) -> int:
        self.bytes += len(data)
        return len(data)


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of tensors in a file, without its header."""
    return sum(tensor.nbytes for tensor in tensors)


@contextmanager
def writing(path: Path, state: str = "nothing was written", needed: Callable[[], int] | None = None) -> Iterator[None]:
    """Turn each error of the system inside this context into one message.

    Args:
        path: File or folder that is written.
        state: What an error leaves at the path.
        needed: Returns the bytes of the whole file or folder; called only if the disk is full.

    Raises:
        NotWritten: With the path, the reason of the system and, for a full disk, the needed and the free space.
    """
    try:
        yield
    except NotWritten:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = reason(error)
        if cause is None:
            raise
        place = next(folder for folder in (path.parent, *path.parent.absolute().parents) if folder.is_dir())
        left = shutil.disk_usage(place).free / 1e6
        # a library may give no reason of the system, such as Pillow for a picture
        full = "os error 28" in cause or os.strerror(errno.ENOSPC) in cause or left < 1
        size = f", {needed() / 1e6:.1f} MB are needed" if full and needed is not None else ""
        free = f", {left:.1f} MB are free in {place}" if full else ""
        raise NotWritten(f"cannot write {path} ({cause}{size}{free}); {state}") from error


def reason(error: BaseException | None) -> str | None:
    """Reason of the system for an error; None if the error has another cause.

    A library may replace the error of the system by its own.
    """
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        if "os error" in str(error):  # safetensors
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def write_atomically(path: Path, write: Callable[[Path], object], needed: Callable[[], int] | None = None) -> None:
    """Call ``write`` with a temporary path in the same folder, then rename that file: no reader gets half a file.

    Args:
        path: The file.
        write: Writes its content to the path that it is called with.
        needed: Returns the bytes of the content; called only if the disk is full.

    Raises:
        NotWritten: If the file cannot be written.
    """
    state = "the old file is unchanged" if os.path.lexists(path) else "no file was left there"
    with writing(path, state, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            write(Path(temporary))
            os.chmod(temporary, 0o666 & ~current_umask())  # because files of mkstemp are private
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)


def move_files(source: Path, target: Path) -> None:
    """Move all files of a folder into a new or empty one; if that fails, the target is as before.

    Args:
        source: Folder of files.
        target: Folder on the same or another disk.
    """
    before = target.exists()
    target.mkdir(exist_ok=True)
    names = [file.name for file in source.iterdir()]
    try:
        for name in names:
            (source / name).chmod(0o666 & ~current_umask())  # because a library may have made private files
            shutil.move(source / name, target / name)
    except BaseException:
        for name in names:
            (target / name).unlink(missing_ok=True)
        if not before:
            target.rmdir()
        raise


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
