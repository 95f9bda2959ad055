"""File format of low-bit adapters (packed files)."""

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from checkpoints.fingerprint import hash_of

PACKED = b"LBADPT01"  # first bytes of a file that has a header


class Record(NamedTuple):
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    bits: int

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """Number of bytes of codes, mean and standard deviation; for 32 bits, of fp32 values."""
        return 4 * self.size if self.bits == 32 else -(-self.size * self.bits // 8) + 8


def table(records: list[Record]) -> list[dict[str, Any]]:
    """Rows of the header, one for each record."""
    rows: list[dict[str, Any]] = []
    offset = 0
    for record in records:
        kind = "f32" if record.bits == 32 else "q"
        row = {"name": record.name, "shape": list(record.shape), "kind": kind, "bits": record.bits}
        rows.append(row | {"offset": offset, "nbytes": record.nbytes})
        offset += record.nbytes
    return rows


def add_header(payload: bytes, settings: Mapping[str, Any], records: list[Record]) -> bytes:
    """Bytes of a file in the layout ``tagged``: magic bytes, length of the header, header in JSON, payload.

    The entry ``sha256`` of the header is the hash of its other entries and of the payload.
    """
    entries = json.loads(json.dumps({**settings, "records": table(records)}))
    entries["sha256"] = hash_of([entries, hashlib.sha256(payload).hexdigest()])
    header = json.dumps(entries, separators=(",", ":")).encode()
    return PACKED + struct.pack("<I", len(header)) + header + payload


def split_header(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and payload of a file; the header of a file in the layout ``raw`` is empty.

    Raises:
        ValueError: If the header is cut off, or the file is damaged.
    """
    if data[: len(PACKED)] != PACKED:
        return {}, data
    start = len(PACKED) + 4
    end = start + int.from_bytes(data[start - 4 : start], "little")
    if len(data) < max(start, end):
        raise ValueError(f"truncated: its header ends at byte {end:,}, and the file has {len(data):,}")
    try:
        header = json.loads(data[start:end])
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"its header is no valid JSON: {error}") from error
    if not isinstance(header, dict) or not header:
        raise ValueError("its header is no JSON object, or an empty one")
    payload = data[end:]
    expected = header.pop("sha256", None)  # files of before December 2026 have none
    if expected is not None and expected != hash_of([header, hashlib.sha256(payload).hexdigest()]):
        raise ValueError("damaged: its content is not that of its sha256")
    return header, payload
