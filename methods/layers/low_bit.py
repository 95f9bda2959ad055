"""Low-bit matrices for adapters (Jie et al., ICCV 2023, arXiv:2307.16867), and their bytes in a file.

A matrix is standardised by its mean and standard deviation. Every value is replaced by the nearest of ``2^bits``
levels, which are made for the standard normal distribution. Then the result is mapped back. A file stores the indices
of the levels and the two moments. Its bytes are equal to those of the official code.
"""

import struct
from collections.abc import Mapping
from math import sqrt
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from checkpoints.packed import Record
from methods.layers.constants import computed_once
from methods.layers.operation import Operation

BITS = (1, 2, 4, 8, 32)  # 32: not quantised
EPS = 1e-5

Codebook = Literal["l1_optimal", "official"]


@computed_once
def codebook(bits: int, kind: Codebook, device: torch.device) -> tuple[Tensor, Tensor]:
    """Levels (2^bits,), ascending, and the thresholds between them.

    Each level is the median of its cell, which minimises E|x - Q(x)| over the standard normal. ``official`` starts the
    iteration from zeros, as the published code does. With 8 bits, its 500 passes are far from convergence.
    """
    count = 2**bits
    levels = torch.zeros(count, dtype=torch.float64, device="cpu")
    if kind == "l1_optimal":
        levels = sqrt(2) * torch.special.ndtri((torch.arange(count, dtype=torch.float64, device="cpu") + 0.5) / count)
    for _ in range(500):
        thresholds = (levels[1:] + levels[:-1]) / 2
        edges = F.pad(torch.special.ndtr(thresholds), (1, 0))
        edges = F.pad(edges, (0, 1), value=1.0)
        levels = torch.special.ndtri((edges[1:] + edges[:-1]) / 2)
    return levels.float().to(device), thresholds.float().to(device)


class NearestLevel(Operation):
    """Nearest level of each value; the gradient passes unchanged (straight-through estimator)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, levels: Tensor, thresholds: Tensor) -> Tensor:
        return levels[torch.bucketize(values, thresholds)].to(values.dtype)  # a value on a threshold: the lower level

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return g, None, None


def standardise(latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised latent, its mean and its standard deviation (divisor m - 1)."""
    mean, std = latent.mean(), latent.std()
    return (latent - mean) / (std + EPS), mean, std


def effective(latent: Tensor, bits: int, kind: Codebook) -> Tensor:
    """Low-bit matrix of a latent matrix. Mean and standard deviation get gradients too."""
    normal, mean, std = standardise(latent)
    return NearestLevel.apply(normal, *codebook(bits, kind, latent.device)) * std + mean


# the file


def write_record(latent: Tensor, bits: int, kind: Codebook) -> bytes:
    """Bytes of a latent: its codes, mean and standard deviation; for 32 bits its fp32 values."""
    latent = latent.detach().cpu().float()
    if bits == 32:
        return latent.contiguous().numpy().astype("<f4").tobytes()
    normal, mean, std = standardise(latent)
    index = torch.bucketize(normal, codebook(bits, kind, latent.device)[1])
    return pack(index, bits) + struct.pack("<ff", mean, std)


def read_record(data: bytes, record: Record, kind: Codebook) -> Tensor:
    """Low-bit matrix of a record. Do not quantise it again, because that would change its moments.

    Raises:
        ValueError: If the record is damaged.
    """
    if record.bits == 32:
        values = torch.tensor(struct.unpack(f"<{record.size}f", data), dtype=torch.float32)
    else:
        mean, std = struct.unpack("<ff", data[-8:])
        index = unpack(data[:-8], record.bits)
        if not std >= 0:
            raise ValueError(f"{record.name} is damaged: its standard deviation is {std}")
        if index[record.size :].any():
            raise ValueError(f"{record.name} is damaged: its last byte is not padded with zeros")
        values = codebook(record.bits, kind, torch.device("cpu"))[0][index[: record.size]] * std + mean
    if not values.isfinite().all():
        raise ValueError(f"{record.name} is damaged: it holds NaN or infinity")
    return values.view(record.shape)


def pack(index: Tensor, bits: int) -> bytes:
    """Indices, row-major, as bytes; the first index of a byte is in its lowest bits."""
    groups = F.pad(index.flatten(), (0, -index.numel() % (8 // bits))).view(-1, 8 // bits)
    return (groups << torch.arange(0, 8, bits)).sum(dim=1).to(torch.uint8).numpy().tobytes()


def unpack(data: bytes, bits: int) -> Tensor:
    """Indices in bytes, with those of the padding."""
    values = torch.frombuffer(bytearray(data), dtype=torch.uint8).int()
    return ((values[:, None] >> torch.arange(0, 8, bits)) & (2**bits - 1)).flatten()


def write_payload(tensors: Mapping[str, Tensor], records: list[Record], kind: Codebook) -> bytes:
    """Bytes of all records, one after another (the layout ``raw``)."""
    return b"".join(write_record(tensors[record.name], record.bits, kind) for record in records)


def read_payload(payload: bytes, records: list[Record], kind: Codebook) -> dict[str, Tensor]:
    """Matrices of a payload by name.

    Raises:
        ValueError: If the length of the payload is not that of the records, or a record is damaged.
    """
    expected = sum(record.nbytes for record in records)
    if len(payload) != expected:
        what = "truncated" if len(payload) < expected else "too long"
        raise ValueError(
            f"{what}, or of other settings: {len(payload):,} bytes of weights, and these settings have {expected:,}"
        )
    tensors, start = {}, 0
    for record in records:
        tensors[record.name] = read_record(payload[start : start + record.nbytes], record, kind)
        start += record.nbytes
    return tensors
