"""Batches: one form for all tasks."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class Batch(NamedTuple):
    """A batch of a loader.

    Args:
        inputs: Input of the model: a tensor with B rows, a dict of tensors, or ``Features`` of a cache.
        targets: Targets of the loss and the metrics, with B rows.
        valid: Bool (B,). False for padding samples, which make all ranks equally long; losses and metrics leave them
            out.
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
        """Number of samples B, padding samples included."""
        return len(self.valid)


class Features(NamedTuple):
    """Features of a frozen backbone, used as inputs of a model.

    Args:
        tensors: Tensors with B rows each.
    """

    tensors: Sequence[Tensor]


def repeated(inputs: Any, count: int) -> Any:
    """Inputs of a model with ``count`` times the rows, those of a tensor or of a dict of tensors one after another."""
    return tree_map(lambda tensor: torch.cat([tensor] * count), inputs)
