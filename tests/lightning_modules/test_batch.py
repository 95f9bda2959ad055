"""Batches."""

import torch
from lightning.fabric.utilities import move_data_to_device

from lightning_modules.batch import Batch, Features


def test_batch_of_real_samples() -> None:
    batch = Batch.of(torch.zeros(2, 3), torch.tensor([1, 0]))
    assert batch.valid.tolist() == [True, True]
    assert batch.size == 2


def test_features_keep_their_kind_on_the_way_to_a_device() -> None:
    """A plain tuple of features would become a list of inputs in a pinned loader."""
    batch = Batch.of(Features((torch.zeros(2, 3), torch.ones(2, 4))), torch.tensor([1, 0]))
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, Batch)
    assert isinstance(moved.inputs, Features)
    assert [tensor.device.type for tensor in moved.inputs.tensors] == ["meta", "meta"]
