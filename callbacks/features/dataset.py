"""Dataset of cached features in the place of one of inputs, and the contract of the data that it belongs to."""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.batch import Batch, Features


@runtime_checkable
class CacheableData(Protocol):
    """Datamodule whose splits can be read from other datasets. ``datamodules.base.DataModule`` is one."""

    splits: Any  # dict of the dataset of each split
    batch_size: int
    eval_batch_size: int
    unit: Any  # name of one sample in messages

    def varies(self) -> list[str]:
        """Options, as ``name=value``, that make the items of the training split differ between epochs."""

    def fingerprint(self, split: str) -> str:
        """Hash of all that a model reads of a split when nothing is augmented."""

    def collate(self, items: list[Any]) -> Batch:
        """Batch of items."""

    def loader(self, dataset: Any, batch_size: int) -> DataLoader[Any]:
        """Loader of a dataset of this datamodule, or of a ``Subset`` of it."""

    def on_device(self, batch: Batch) -> Batch:
        """Batch as the model reads it, from a batch of the loader that is on the device by now."""

    def replace(self, split: str, dataset: Any) -> None:
        """Read a split from another dataset until ``restore``."""

    def restore(self) -> None:
        """Read every split from its own dataset again."""


class FrozenFeatures(Dataset[tuple[int, Any]]):
    """Cached features of a frozen backbone, one row per sample; ``tensors`` is empty until the cache is filled.

    Args:
        plain: Dataset of the inputs that the features are computed from.
        collate: Function that makes a batch of items (row, target).
        widen: Convert features to fp32, because they were rounded to 16 bits.
    """

    in_memory: ClassVar[bool] = True

    def __init__(self, plain: Any, collate: Callable[[list[Any]], Batch], widen: bool = False) -> None:
        self.plain = plain
        self.samples = plain.samples
        self.collate = collate
        self.widen = widen
        self.tensors: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.samples.target(index)

    def gather(self, items: list[Any]) -> Batch:
        """Batch whose inputs are features."""
        batch = self.collate(items)
        features = (tensor[batch.inputs.to(tensor.device)] for tensor in self.tensors)
        return batch._replace(inputs=Features(tuple(f.float() if self.widen else f for f in features)))

    def loader_options(self) -> dict[str, Any]:
        """Options of its loader: no workers and no pinned memory, because a batch is a few rows of ready tensors."""
        return {"collate_fn": self.gather, "num_workers": 0, "persistent_workers": False, "pin_memory": False}
