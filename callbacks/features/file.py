"""File of features, in the safetensors format, that several ranks write row by row and others map into memory."""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from safetensors import SafetensorError, safe_open
from torch import Tensor

from checkpoints.atomic import NotWritten, tensor_bytes, write_atomically

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # names of the safetensors format
ABANDONED = 3600  # seconds without a write after which a temporary file belongs to no running process
Rows = Iterator[tuple[int, tuple[Tensor, ...]]]
"""First row and features of successive batches."""


def read(path: Path, digest: str) -> tuple[Tensor, ...] | None:
    """Memory-mapped features of a file; None if there is no whole file with this key.

    Args:
        path: The file.
        digest: Key that its metadata must have.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            if file.metadata()["key"] == digest:
                return tuple(file.get_tensor(str(i)) for i in range(len(file.keys())))
    except SafetensorError as error:
        print(f"warning: {path} is damaged ({error}); computing its features anew", file=sys.stderr)
    return None


def write(trainer: Trainer, path: Path, rows: Rows, count: int, metadata: dict[str, str]) -> None:
    """Write a file row by row, every rank its own rows. The file gets its name only when it is whole.

    Args:
        trainer: Trainer of all ranks, each of which must call this.
        path: The file.
        rows: Rows of this rank.
        count: Number of rows of all ranks together.
        metadata: Texts to keep in the header.

    Raises:
        NotWritten: If there is no space, or no right to write.
        ValueError: If another rank failed.
    """
    if not trainer.is_global_zero:
        write_share(trainer, None, path, rows, count, metadata)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*"):  # of a run that was killed
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink(missing_ok=True)
        write_atomically(path, lambda temporary: write_share(trainer, temporary, path, rows, count, metadata))
    trainer.strategy.barrier()


def write_share(
    trainer: Trainer, temporary: Path | None, path: Path, rows: Rows, count: int, metadata: dict[str, str]
) -> None:
    """Lay the file out on rank 0, then write the rows of this rank; if one rank fails, all raise.

    Args:
        trainer: Trainer of all ranks.
        temporary: Place of the unfinished file on rank 0, None on other ranks.
        path: Place of the finished file, for messages.
        rows: Rows of this rank.
        count: Number of rows of all ranks together.
        metadata: Texts to keep in the header.
    """
    failure: Exception | None = None
    first: list[tuple[int, tuple[Tensor, ...]]] = []
    offsets: list[int] = []
    try:
        if temporary is not None:
            first = [next(rows)]
            offsets = lay_out(temporary, first[0][1], count, metadata)
    except Exception as error:  # raised below, because the other ranks would wait for this one
        failure = error
    name, offsets = trainer.strategy.broadcast((str(temporary), offsets))
    try:
        if offsets:
            write_rows(Path(name), chain(first, rows), offsets)
    except Exception as error:
        failure = error
    failed = torch.tensor(float(failure is not None), device=trainer.strategy.root_device)
    failed = trainer.strategy.reduce(failed, reduce_op="sum")
    if isinstance(failure, OSError):
        size = f", {count * tensor_bytes(part[0] for part in first[0][1]) / 1e6:.1f} MB are needed" if first else ""
        raise NotWritten(
            f"features.cache_dir={str(path.parent)!r} cannot take the features ({failure.strerror}{size}); nothing was "
            "kept. Make room, or use another folder, --features.dtype bf16 or --features.cache ram"
        ) from failure
    if failure is not None:
        raise failure
    if failed:
        raise ValueError("features could not be kept on another rank; its message says why")


def lay_out(path: Path, parts: tuple[Tensor, ...], count: int, metadata: dict[str, str]) -> list[int]:
    """Write the header of a file and reserve the space of its tensors.

    Args:
        path: The file.
        parts: Some rows of each tensor, for its type and shape.
        count: Number of rows of each tensor.
        metadata: Texts to keep in the header.

    Returns:
        Offset of each tensor in the file, in bytes.
    """
    sizes = [part[0].nbytes * count for part in parts]
    ends = list(accumulate(sizes))
    header: dict[str, Any] = {"__metadata__": metadata}
    for i, (part, size, end) in enumerate(zip(parts, sizes, ends, strict=True)):
        shape = [count, *part.shape[1:]]
        header[str(i)] = {"dtype": DTYPES[part.dtype], "shape": shape, "data_offsets": [end - size, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        os.posix_fallocate(file.fileno(), 0, begin + ends[-1])  # otherwise a full disk would fail after an hour
    return [begin + end - size for size, end in zip(sizes, ends, strict=True)]


def write_rows(path: Path, rows: Iterable[tuple[int, tuple[Tensor, ...]]], offsets: list[int]) -> None:
    """Write rows into their places in a file that is laid out."""
    with path.open("r+b") as file:
        for start, parts in rows:
            for offset, part in zip(offsets, parts, strict=True):
                file.seek(offset + start * part[0].nbytes)
                file.write(part.flatten().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())  # because the name must not be on the disk before the bytes are
