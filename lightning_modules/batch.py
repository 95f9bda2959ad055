"""Form of a batch, the same for all tasks."""

from typing import Any, NamedTuple

from torch import Tensor

PADDING = -100  # label of a sample that only evens out the ranks; metrics and losses ignore it


class Batch(NamedTuple):
    """What a loader gives.

    Args:
        inputs: Input of the model: a tensor with B rows, a dict of tensors, or ``Features`` of a cache.
        targets: Targets of the loss and the metrics, with B rows.
        valid: Bool (B,). False for samples that only even out the ranks; losses and metrics leave them out.
    """

    inputs: Any
    targets: Any
    valid: Tensor

    @property
    def size(self) -> int:
        """Number of samples B, with those that only even out the ranks."""
        return len(self.valid)


class Features(tuple[Tensor, ...]):
    """Features of a frozen backbone in the place of its inputs; each tensor has B rows."""
