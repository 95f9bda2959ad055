"""Batches for tests."""

from typing import Any

import torch
from torch import Tensor

from lightning_modules.batch import Batch


def as_batch(inputs: Any, targets: Tensor, valid: list[bool] | None = None) -> Batch:
    """Batch of inputs and targets with B rows; all of them are real samples unless ``valid`` tells otherwise."""
    return Batch.of(inputs, targets) if valid is None else Batch(inputs, targets, torch.tensor(valid))
