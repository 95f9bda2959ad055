"""Order of an epoch in which the texts of a batch have similar lengths."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.loading import EpochSampler

BATCHES = 50  # of all ranks, whose samples are sorted together, as in Hugging Face's trainer


class LengthSampler(EpochSampler):
    """Shuffled shares of the ranks, in which each run of ``BATCHES`` batches is sorted from long to short.

    All ranks draw the same order. Each takes every ``world_size``-th sample of it, so the batches of a step have
    similar lengths on all ranks.

    Args:
        dataset: Training set.
        world_size: Number of ranks.
        rank: Number of this rank.
        lengths: Length of each sample (N,).
        batch_size: Samples of a batch on one rank.
    """

    def __init__(self, dataset: Dataset[Any], world_size: int, rank: int, lengths: Tensor, batch_size: int) -> None:
        super().__init__(dataset, world_size, rank)
        self.lengths, self.together = lengths, BATCHES * batch_size * world_size

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed + self.epoch)
        groups = torch.randperm(len(self.lengths), generator=draw).split(self.together)
        order = torch.cat([group[self.lengths[group].argsort(descending=True, stable=True)] for group in groups])
        order = torch.cat([order, order[: self.total_size - len(order)]])  # otherwise ranks would have unequal shares
        return iter(order[self.rank : self.total_size : self.num_replicas].tolist())
