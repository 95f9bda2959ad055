"""Dataset of cached features in the place of one of inputs."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from datamodules.items import Items
from lightning_modules.batch import Batch, Features


class FrozenFeatures(Items):
    """Cached features of a frozen backbone, one row per sample; ``tensors`` is empty until the cache is filled.

    Args:
        plain: Dataset of the inputs that the features are computed from.
        collate: Function that makes a batch of items (row, target).
        widen: Convert features to fp32, because they were rounded to 16 bits.
    """

    in_memory: ClassVar[bool] = True

    def __init__(self, plain: Items, collate: Callable[[list[Any]], Batch], widen: bool = False) -> None:
        self.plain = plain
        self.samples = plain.samples
        self.collate = collate
        self.widen = widen
        self.tensors: tuple[Tensor, ...] = ()

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
