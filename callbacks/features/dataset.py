"""Dataset of cached features in the place of one of images."""

from typing import Any, ClassVar

from torch import Tensor

from datamodules.items import Items
from datamodules.loading import Loaders
from lightning_modules.batch import Batch, Features


class FrozenFeatures(Items):
    """Cached features of a frozen backbone, one row per sample; ``tensors`` is empty until the cache is filled.

    Args:
        plain: Dataset of the inputs that the features are computed from.
        widen: Convert features to fp32, because they were rounded to 16 bits.
    """

    in_memory: ClassVar[bool] = True

    def __init__(self, plain: Items, widen: bool = False) -> None:
        self.plain = plain
        self.samples = plain.samples
        self.widen = widen
        self.tensors: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.samples.target(index)

    def collate(self, items: list[Any]) -> Batch:
        """Batch whose inputs are features."""
        batch = Loaders.collate(items)
        features = (tensor[batch.inputs.to(tensor.device)] for tensor in self.tensors)
        return batch._replace(inputs=Features(tuple(f.float() if self.widen else f for f in features)))

    def loader_options(self) -> dict[str, Any]:
        """No workers and no pinned memory, because a batch is a few rows of tensors that exist already."""
        return {"collate_fn": self.collate, "num_workers": 0, "persistent_workers": False, "pin_memory": False}
