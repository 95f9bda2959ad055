"""Images of classes: checks of their labels, and the names of the classes."""

from abc import abstractmethod
from typing import Any, Literal

from datamodules.base import Split
from datamodules.image_module import ImageModule
from datamodules.items import Items
from datamodules.loading import BalancedSampler, EpochSampler
from datamodules.samples import Labelled
from lightning_modules.class_losses import class_counts


class LabelledImages(ImageModule):
    """Images, each of one class; subclasses give ``samples``, ``num_classes`` and ``class_names``.

    Args:
        sampling: Training images of an epoch. ``shuffle``: each one once. ``balanced``: as many draws with replacement,
            where each class is as likely as the others.
    """

    def __init__(self, sampling: Literal["shuffle", "balanced"] = "shuffle", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sampling = sampling

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes, also of those without an image."""

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Name of every class, in the order of their numbers."""

    @abstractmethod
    def samples(self, split: Split) -> Labelled | None: ...

    def check_samples(self, split: str, samples: Any) -> None:
        """Refuse labels outside the classes as well, and print a note about classes without a training image."""
        super().check_samples(split, samples)
        labels = samples.labels
        outside = ((labels < 0) | (labels >= self.num_classes)).nonzero().flatten()
        if len(outside):
            first = int(outside[0])
            raise ValueError(
                f"{split}: {samples.name(first)} has label {int(labels[first])}, outside 0 to "
                f"{self.num_classes - 1} ({len(outside)} such samples)"
            )
        if split == "train" and self.sampling == "balanced":
            class_counts(labels, self.num_classes, self.class_names, "data.sampling=balanced")
        elif split == "train":
            missing = self.num_classes - len(labels.unique())
            if missing:
                print(f"note: {missing} of {self.num_classes} classes have no training image")

    def train_sampler(self, dataset: Items, world_size: int, rank: int) -> EpochSampler:
        if self.sampling == "shuffle":
            return super().train_sampler(dataset, world_size, rank)
        labels: Any = dataset.samples
        return BalancedSampler(dataset, world_size, rank, labels.labels)

    def read_once(self) -> None:
        super().read_once()
        self.sampling = "shuffle"

    def description(self) -> dict[str, Any]:
        return super().description() | ({} if self.sampling == "shuffle" else {"sampling": self.sampling})

    def target_key(self, samples: Any) -> Any:
        return samples.labels.tolist()
