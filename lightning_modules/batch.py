"""Form of a batch, the same for all tasks."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor


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

    @classmethod
    def of(cls, inputs: Any, targets: Tensor) -> Self:
        """Batch of real samples: inputs and targets with B rows."""
        return cls(inputs, targets, torch.ones(len(targets), dtype=torch.bool, device=targets.device))

    @property
    def size(self) -> int:
        """Number of samples B, with those that only even out the ranks."""
        return len(self.valid)


class Features(NamedTuple):
    """Features of a frozen backbone in the place of its inputs.

    Args:
        tensors: Tensors with B rows each.
    """

    tensors: Sequence[Tensor]
