"""Whole tensors and their shards: FSDP2 keeps a part of each tensor on each device."""

from typing import Any

from lightning_utilities import apply_to_collection
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(data: Any) -> Any:
    """Data with every sharded tensor in one piece on the CPU; all ranks must call it.

    Args:
        data: A tensor, or tensors and other values in lists and mappings.
    """
    return apply_to_collection(data, DTensor, lambda tensor: tensor.full_tensor().cpu())


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Tensor in shards if ``like``, a tensor of the same shape, is sharded; otherwise the tensor itself.

    Args:
        tensor: A tensor that is equal on all ranks, or one that is sharded already.
        like: The tensor whose place it takes.
    """
    if isinstance(tensor, DTensor) or not isinstance(like, DTensor):
        return tensor
    # no source rank, because each rank has the whole tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
