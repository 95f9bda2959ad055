"""Operations over all ranks: errors on all ranks together, sums."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from lightning import Trainer
from torch import Tensor

BUCKET = 64 * 1024**2  # bytes of one all-reduce


@contextmanager
def all_or_none(trainer: Trainer) -> Iterator[None]:
    """If one rank raises an error inside this context, all ranks raise; otherwise the others would wait forever.

    Raises:
        ValueError: On ranks without an error of their own.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = torch.tensor(float(failure is not None), device=trainer.strategy.root_device)
    if trainer.world_size > 1:
        torch.distributed.all_reduce(failed)
    if failure is not None:
        raise failure
    if failed:
        raise ValueError("scoring failed on another rank; see the message of that rank")


def add_over_ranks(sums: dict[str, Tensor]) -> None:
    """Add the sums of all ranks, in place; one all-reduce for each bucket of tensors."""
    names: list[str] = []
    for name in [*sorted(sums), None]:
        full = names and (name is None or sum(sums[n].numel() * 4 for n in names) + sums[name].numel() * 4 > BUCKET)
        if full:
            flat = torch.cat([sums[n].flatten() for n in names])
            torch.distributed.all_reduce(flat)
            for n, part in zip(names, flat.split([sums[n].numel() for n in names]), strict=True):
                sums[n].copy_(part.view_as(sums[n]))
            names = []
        if name is not None:
            names.append(name)


def over_ranks(tensors: list[Any]) -> list[Tensor]:
    """Sums of tensors over all ranks, in one all-reduce."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
