"""Datasets of the splits: items of samples, and equal shares of all ranks."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch.utils.data import Dataset, Subset

from datamodules.samples import Samples


class Items(Dataset[tuple[Any, Any]]):
    """Items (inputs, target) of samples, made at every access.

    Args:
        samples: Samples as stored.
        make: Function of one sample that gives its item, such as ``DataModule.item``.
    """

    in_memory: ClassVar[bool] = False  # True if an access decodes nothing, so that worker processes would not help

    def __init__(self, samples: Samples, make: Callable[[Any], tuple[Any, Any]]) -> None:
        self.samples, self.make = samples, make

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        try:
            return self.make(self.samples[index])
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.samples.name(index)} cannot be read: {error}") from error

    def loader_options(self) -> dict[str, Any]:
        """Options of ``DataLoader`` that this dataset needs; they win over those of the datamodule."""
        return {}


class Padded(Dataset[tuple[Any, Any, bool]]):
    """Dataset of items (inputs, target, valid) whose length is a multiple of a number; added items are not valid.

    Args:
        dataset: Dataset of items (inputs, target).
        multiple: Number of ranks, which get equal numbers of items.
    """

    def __init__(self, dataset: Dataset[tuple[Any, Any]], multiple: int) -> None:
        self.dataset = dataset
        self.length = len(dataset)  # type: ignore[arg-type]
        self.padded = -(-self.length // multiple) * multiple

    def __len__(self) -> int:
        return self.padded

    def __getitem__(self, index: int) -> tuple[Any, Any, bool]:
        inputs, target = self.dataset[min(index, self.length - 1)]
        return inputs, target, index < self.length


def innermost(dataset: Any) -> Items:
    """Dataset inside ``Padded`` and ``Subset``."""
    while isinstance(dataset, (Padded, Subset)):
        dataset = dataset.dataset
    return dataset
