"""Whole tensors and their shards."""

from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from checkpoints.whole import shard_like, whole
from tests.support.ranks import TwoRanks


def there_and_back(rank: int) -> dict[str, Any]:
    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    # three rows for two ranks: the shards have different sizes
    tensor = torch.arange(12.0).view(3, 4)
    like = distribute_tensor(torch.zeros(3, 4), mesh, [Shard(0)])
    sharded = shard_like(tensor, like)
    assert sharded.placements == like.placements
    assert shard_like(sharded, like) is sharded
    found = whole({"state": [{"a": sharded, "step": 3}], "plain": tensor})
    return {"rows": len(sharded.to_local()), "found": found}


def test_shards_of_two_ranks(two_ranks: TwoRanks) -> None:
    ranks = two_ranks(there_and_back)
    assert [rank["rows"] for rank in ranks] == [2, 1]
    for rank in ranks:
        ((entries,), plain) = rank["found"]["state"], rank["found"]["plain"]
        assert torch.equal(entries["a"], torch.arange(12.0).view(3, 4))
        assert entries["step"] == 3
        assert torch.equal(plain, torch.arange(12.0).view(3, 4))


def test_plain_tensors_stay() -> None:
    tensor = torch.ones(2)
    assert shard_like(tensor, torch.zeros(2)) is tensor
    assert whole(tensor) is tensor
