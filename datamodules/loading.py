"""Loaders: the order of an epoch, equal shares of all ranks, and batches on the device."""

import os
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from datamodules.items import Items, Padded, innermost
from lightning_modules.batch import Batch, Features
from lightning_modules.seed import run_seed

MAX_WORKERS = 1024  # each takes the memory of a process


class EpochSampler(DistributedSampler[Any]):
    """Shuffled shares of the ranks. They depend on the seed and the epoch alone, as do the seeds of the workers."""

    def __init__(self, dataset: Dataset[Any], world_size: int, rank: int) -> None:
        super().__init__(dataset, world_size, rank, shuffle=True, seed=run_seed())
        self.generator = torch.Generator()

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.generator.manual_seed(self.seed + epoch)


class BalancedSampler(EpochSampler):
    """Draws with replacement in which each class is as likely as the others; as many as there are samples.

    All ranks draw the same and take their shares of it.

    Args:
        dataset: Training set.
        world_size: Number of ranks.
        rank: Number of this rank.
        labels: Class of each sample (N,).
    """

    def __init__(self, dataset: Dataset[Any], world_size: int, rank: int, labels: Tensor) -> None:
        super().__init__(dataset, world_size, rank)
        self.weights = 1.0 / labels.bincount()[labels].double()

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed + self.epoch)
        drawn = torch.multinomial(self.weights, self.total_size, replacement=True, generator=draw)
        return iter(drawn[self.rank : self.total_size : self.num_replicas].tolist())


class TrainLoader(DataLoader[Any]):
    """Loader that starts its workers with the first batch.

    Lightning makes the first iterator before a resumed run has set its epoch. Workers get their seed and their first
    indices when they start, so an early start would give those of the wrong epoch.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()


def score_order(count: int, batch_size: int, shuffle: bool, drop_last: bool, passes: int) -> list[list[int]]:
    """Indices of every scoring batch; they depend on the seed of the run and not on the rank.

    Args:
        count: Number of samples.
        batch_size: Samples of a batch.
        shuffle: Draw the order from the seed; otherwise it is that of the samples.
        drop_last: Leave out an incomplete last batch of a pass.
        passes: Number of passes over all samples, each in an order of its own if it is drawn.
    """
    draw = torch.Generator().manual_seed(run_seed())
    orders = [torch.randperm(count, generator=draw) if shuffle else torch.arange(count) for _ in range(passes)]
    batches = [batch.tolist() for order in orders for batch in order.split(batch_size)]
    return [batch for batch in batches if len(batch) == batch_size or not drop_last]


class Loaders(LightningDataModule):
    """Loaders of a run over the datasets in ``splits``.

    Args:
        batch_size: Samples of a training step on each device.
        eval_batch_size: Samples of an evaluation step on each device; ``batch_size`` if not given.
        num_workers: Worker processes of a loader. By default none over data in memory, else one per core up to 8.
        drop_last: Leave out the last training batch of an epoch if it is incomplete.
    """

    unit: ClassVar[str] = "sample"  # name of one sample in messages and results

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        drop_last: bool = True,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        if eval_batch_size is not None and eval_batch_size < 1:
            raise ValueError(f"eval_batch_size={eval_batch_size}: expected at least 1, or none for batch_size")
        if num_workers is not None and not 0 <= num_workers <= MAX_WORKERS:
            raise ValueError(f"num_workers={num_workers}: expected 0 to {MAX_WORKERS:,} processes")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.drop_last = drop_last
        self.once = False  # whether an epoch gives each training sample once on any number of ranks, not shuffled
        self.splits: dict[str, Items] = {}
        self.replaced: dict[str, Items] = {}  # datasets of ``splits`` that ``replace`` has put aside

    def __getstate__(self) -> dict[str, Any]:
        """State for worker processes, which make items: without the trainer and without the pixels of other splits."""
        return self.__dict__ | {"trainer": None, "splits": {}, "replaced": {}}

    def replace(self, split: str, dataset: Items) -> None:
        """Read a split from another dataset, such as one of cached features, until ``restore``."""
        self.replaced.setdefault(split, self.splits[split])
        self.splits[split] = dataset

    def restore(self) -> None:
        """Read every split from its own dataset again."""
        self.splits |= self.replaced
        self.replaced = {}

    # the form of an epoch

    def varies(self) -> list[str]:
        """Options, as ``name=value``, that make the items of the training split differ between epochs."""
        return []

    def read_once(self) -> None:
        """Give each training sample once and as it is in a test, for a task that computes its model from all of them.

        A subclass switches its augmentation off.
        """
        if self.varies():
            print(f"note: each training {self.unit} is read once, without {', '.join(self.varies())}")
        self.once, self.drop_last = True, False

    # batches

    def collate(self, items: list[Any]) -> Batch:
        """Batch of items (inputs, target), or (inputs, target, valid); an item without ``valid`` is a real sample."""
        return Batch(*default_collate([item if len(item) == 3 else (*item, True) for item in items]))

    def on_device(self, batch: Batch) -> Batch:
        """Batch as the model reads it, from a batch of the loader that is on the device by now."""
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if isinstance(batch.inputs, Features):  # a cache has made them of inputs that passed ``on_device`` already
            return batch
        return self.on_device(batch)

    # loaders

    def train_sampler(self, dataset: Items, world_size: int, rank: int) -> EpochSampler:
        """Order of the training samples of each epoch, and the share of a rank."""
        return EpochSampler(dataset, world_size, rank)

    def train_dataloader(self) -> DataLoader[Any]:
        if self.once:
            return self.eval_loader("train")
        dataset, trainer = self.splits["train"], self.trainer
        world_size, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        sampler = self.train_sampler(dataset, world_size, rank)
        sampler.set_epoch(trainer.current_epoch if trainer else 0)  # Lightning sets it only from the second epoch on
        options = {
            "sampler": sampler,
            "generator": sampler.generator,
            "drop_last": self.drop_last,
            # because workers that live on keep their random state, and a resumed run would augment differently
            "persistent_workers": False,
        }
        return self.loader(dataset, self.batch_size, TrainLoader, **options)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        return self.eval_loader("val") if "val" in self.splits else []

    def test_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        return self.eval_loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.splits["test"], self.eval_batch_size)

    def eval_loader(self, split: str) -> DataLoader[Any]:
        """Loader of every sample once; ranks get equal numbers, because Padded adds samples that do not count."""
        dataset = Padded(self.splits[split], self.trainer.world_size if self.trainer else 1)
        return self.loader(dataset, self.eval_batch_size)

    def loader(
        self, dataset: Dataset[Any], batch_size: int, kind: type[DataLoader[Any]] = DataLoader, **options: Any
    ) -> DataLoader[Any]:
        """Loader of a dataset with the workers of this datamodule.

        Args:
            dataset: ``Items``, also inside ``Padded`` or ``Subset``.
            batch_size: Items of a batch.
            kind: Class of the loader.
            options: Further options of it.
        """
        source, workers = innermost(dataset), self.num_workers
        if workers is None:
            workers = 0 if source.in_memory else min(os.cpu_count() or 1, 8)
        defaults: dict[str, Any] = {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": self.collate,
        }
        return kind(dataset, batch_size=batch_size, **defaults | options | source.loader_options())
