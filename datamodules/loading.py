"""Loaders: the order of an epoch, and equal shares of all ranks."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from lightning_modules.batch import Batch
from lightning_modules.seed import run_seed


class EpochSampler(DistributedSampler[Any]):
    """Shuffled shares of the ranks that depend on the seed and the epoch alone, as do the seeds of the workers."""

    def __init__(self, dataset: Dataset[Any], world_size: int, rank: int) -> None:
        super().__init__(dataset, world_size, rank, shuffle=True, seed=run_seed())
        self.generator = torch.Generator()

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.generator.manual_seed(self.seed + epoch)


class TrainLoader(DataLoader[Any]):
    """A loader that starts its workers when the first batch is asked for.

    Lightning makes the first iterator before a resumed run knows its epoch, and workers take their seed and their first
    indices at once.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()


class Padded(Dataset[tuple[Any, Any, bool]]):
    """A dataset whose length is a multiple of the number of ranks; added samples are not valid."""

    def __init__(self, dataset: Dataset[tuple[Any, Any]], multiple: int) -> None:
        self.dataset = dataset
        self.length = len(dataset)  # type: ignore[arg-type]
        self.padded = -(-self.length // multiple) * multiple

    def __len__(self) -> int:
        return self.padded

    def __getitem__(self, index: int) -> tuple[Any, Any, bool]:
        inputs, target = self.dataset[min(index, self.length - 1)]
        return inputs, target, index < self.length


def collate(items: list[Any]) -> Batch:
    """Batch of items ``(input, target)`` or ``(input, target, valid)``; an item without ``valid`` is a real sample."""
    return Batch(*default_collate([item if len(item) == 3 else (*item, True) for item in items]))
