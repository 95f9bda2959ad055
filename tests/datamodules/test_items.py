"""Items of samples, and equal shares of all ranks."""

import pytest
import torch
from torch.utils.data import Subset

from datamodules.items import Items, Padded, innermost
from datamodules.pixels import CachedImages
from tests.support.pictures import Listed, pictures


def test_padding_evens_out_the_ranks() -> None:
    samples = CachedImages(pictures(5), torch.rand(5, 3, 4, 4), None)
    padded = Padded(samples, 4)
    assert len(padded) == 8
    assert [padded[index][2] for index in range(8)] == [True] * 5 + [False] * 3
    assert [padded[index][1] for index in range(5)] == [0, 1, 2, 0, 1]
    assert torch.equal(padded[7][0], samples[4][0])
    assert len(Padded(samples, 5)) == 5


def test_unreadable_sample_is_named() -> None:
    samples = pictures(3)
    samples.files[2] = b""
    items = Items(samples, Listed().item)
    assert len(items) == 3
    assert items[1][1] == 1
    with pytest.raises(ValueError, match="image 2 cannot be read: cannot identify"):
        items[2]


def test_innermost_dataset() -> None:
    items = Items(pictures(3), Listed().item)
    assert innermost(Padded(Subset(items, [0, 2]), 4)) is items
    assert innermost(items) is items
