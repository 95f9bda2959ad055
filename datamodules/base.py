"""Data of a run, whatever they are: splits, items, loaders, scoring batches and fingerprints.

A subclass gives ``samples`` and ``item``. This file has no image, no label and no class.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal, cast, get_args

import torch

from datamodules.items import Items
from datamodules.loading import Loaders, score_order
from datamodules.samples import Samples
from lightning_modules.batch import Batch
from lightning_modules.seed import run_seed

Split = Literal["train", "val", "test"]
SPLITS: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
}
"""Splits that each stage of the trainer reads."""


class DataModule(Loaders, ABC):
    """Splits of samples, and their way into batches.

    A subclass gives ``samples`` and ``item``. It may also replace ``train_item`` (augmentation), ``view`` (random views
    for contrastive scores), ``after_mixing``, ``configure`` (what the backbone needs), ``follow``, ``check_samples``,
    ``varies``, the three settings and keys of fingerprints, and of ``Loaders`` the two steps after an item: ``collate``
    and ``on_device``.
    """

    test_follows = False  # whether a test comes right after the fit

    # verbs of a subclass

    @abstractmethod
    def samples(self, split: Split) -> Samples | None:
        """Samples of a split, or None if the data have no such split."""

    @abstractmethod
    def item(self, sample: Any) -> tuple[Any, Any]:
        """Inputs and target of one sample, without augmentation."""

    def train_item(self, sample: Any) -> tuple[Any, Any]:
        """Inputs and target of one training sample, with augmentation."""
        return self.item(sample)

    def score_item(self, sample: Any) -> tuple[Any, Any]:
        """Inputs and target of one sample for scoring, without augmentation; all of one size."""
        return self.item(sample)

    def view(self, sample: Any) -> tuple[Any, Any]:
        """Inputs and target of one sample in a random view, as contrastive scores compare them."""
        raise ValueError(f"{type(self).__name__} has no random views of its samples")

    def after_mixing(self, batch: Batch) -> Batch:
        """Training batch on its device, after mixup and cutmix of the task."""
        return batch

    def configure(self, input_config: dict[str, Any]) -> None:
        """Take over the form of inputs that the backbone needs, before any sample is read."""

    def follow(self, task: Any) -> None:
        """Take over the form of inputs of a task; refuse inputs that it cannot read, before any sample is read."""
        self.configure(getattr(task, "input_config", {}))  # not every task reads images

    def check_samples(self, split: str, samples: Samples) -> None:
        """Refuse samples that a run cannot use.

        Raises:
            ValueError: If there are none, or fewer than one training batch needs.
        """
        if not len(samples):
            raise ValueError(f"the {split} split is empty")
        if split == "train" and self.drop_last and self.batch_size > len(samples):
            raise ValueError(
                f"batch_size={self.batch_size} is larger than the {len(samples)} training {self.unit}s: pass a smaller "
                "--data.batch_size, or --data.drop_last false"
            )

    def item_settings(self) -> tuple[Any, ...]:
        """All settings that the result of ``item`` depends on; a part of fingerprints."""
        return ()

    def device_settings(self) -> tuple[Any, ...]:
        """All settings that the result of ``on_device`` depends on, without random changes; a part of fingerprints."""
        return ()

    def target_key(self, samples: Samples) -> Any:
        """Key of the targets that needs no look into the samples; a part of ``score_fingerprint``."""
        return len(samples)

    # splits

    @property
    def validates(self) -> bool:
        """Whether there is a validation split."""
        return self.samples("val") is not None

    @property
    def kept_epoch(self) -> str:
        """How the epoch of the results is chosen."""
        return "best validation epoch" if self.validates else "last epoch"

    def will_test(self) -> None:
        """Announce a test right after the fit, so that a missing test split stops the run before the fit."""
        self.test_follows = True

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        task: Any = self.trainer.lightning_module
        if getattr(task, "one_pass", False) and stage == "fit":
            self.read_once()
        self.follow(task)
        if stage == "fit" and self.test_follows and self.samples("test") is None:
            raise ValueError("the data have no test split, and test_after_fit asks for one")
        for split in SPLITS[stage]:
            if split not in self.splits:
                samples = self.samples(split)
                if samples is not None:
                    self.splits[split] = self.dataset(split, samples)
                elif split != "val" or stage == "validate":
                    others = [other for other in get_args(Split) if self.samples(other) is not None]
                    raise ValueError(f"the data have no {split} split; found {', '.join(others) or 'none'}")
                else:
                    self.trainer.limit_val_batches = 0  # otherwise Lightning warns about the empty list

    def dataset(self, split: str, samples: Samples) -> Items:
        """Dataset of a split, after a check of its samples."""
        self.check_samples(split, samples)
        return Items(samples, self.train_item if split == "train" else self.item)

    def description(self) -> dict[str, Any]:
        """Facts about the data for ``result.json``."""
        devices = self.trainer.world_size * self.trainer.accumulate_grad_batches if self.trainer else 1
        return {
            "data": getattr(self, "root", type(self).__name__),
            "dataset": type(self).__name__,
            f"{self.unit}s": {split: len(dataset) for split, dataset in self.splits.items()},
            "effective_batch_size": self.batch_size * devices,
        }

    # lists of a benchmark

    @property
    def published_sizes(self) -> dict[str, int | None]:
        """Names of all lists that ``samples_of`` reads; each with its published number of samples, if there is one."""
        splits: tuple[Split, ...] = ("train", "val", "test")
        return {split: None for split in splits if self.samples(split) is not None}

    def samples_of(self, name: str) -> Any:
        """Samples of one list of ``published_sizes``."""
        samples = self.samples(cast(Split, name))
        assert samples is not None
        return samples

    # scores and caches

    def score_batches(
        self,
        batch_size: int,
        max_batches: int | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        views: int = 1,
        passes: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[Batch]:
        """Batches of training samples for scoring, the same for any number of ranks.

        With several views, inputs have views * B rows; targets have B rows.

        Args:
            batch_size: Samples of a batch, B.
            max_batches: Number of batches at most.
            shuffle: Draw the order from the seed; otherwise it is that of the samples.
            drop_last: Leave out an incomplete last batch.
            views: 1 for items as in a test; a larger number for as many random views of each sample.
            passes: Number of passes over all samples, each in an order of its own if it is drawn.
            rank: First batch of this share; batches ``rank``, ``rank + world``, ... belong to it.
            world: Number of shares.

        Raises:
            ValueError: If there is no batch, or a sample cannot be read.
        """
        samples = self.splits["train"].samples
        batches = score_order(len(samples), batch_size, shuffle, drop_last, passes)[:max_batches]
        if not batches:
            raise ValueError(f"scoring batches of {batch_size} {self.unit}s: the train split has only {len(samples)}")
        dataset = Items(samples, self.score_item if views == 1 else self.view)
        for number in range(rank, len(batches), world):
            torch.manual_seed(run_seed() + number)  # otherwise views would depend on the rank that makes the batch
            items = [dataset[index] for _ in range(views) for index in batches[number]]
            batch = self.collate(items)
            yield batch if views == 1 else self.collate(items[: len(batches[number])])._replace(inputs=batch.inputs)

    def digest(self, samples: Samples) -> str:
        """Hash of samples and of the settings that turn them into items."""
        digest = hashlib.sha256(repr(self.item_settings()).encode())
        for index in range(len(samples)):
            digest.update(samples.stored(index))
        return digest.hexdigest()

    def fingerprint(self, split: str) -> str:
        """Hash of all that a model reads of a split when nothing is augmented."""
        whole = repr((self.digest(self.splits[split].samples), *self.device_settings()))
        return hashlib.sha256(whole.encode()).hexdigest()

    def score_fingerprint(self) -> str:
        """Hash of the scoring samples by names, targets and settings; quicker than ``fingerprint``, which reads all."""
        samples = self.splits["train"].samples
        some = [samples.name(i) for i in range(0, len(samples), max(len(samples) // 64, 1))]
        parts = (some, self.target_key(samples), *self.item_settings())
        return hashlib.sha256(repr((parts, *self.device_settings())).encode()).hexdigest()
