"""How many bytes of activations autograd keeps for the backward pass."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class SavedBytes:
    """Count the bytes that autograd saves inside a ``with`` block: unique storages, parameters and buffers left out.

    Example:
        >>> with SavedBytes(model) as saved:
        ...     loss = model(images).sum()
        >>> saved.bytes

    Args:
        module: Module whose parameters and buffers do not count.
    """

    def __init__(self, module: nn.Module) -> None:
        tensors: Iterable[Tensor] = [*module.parameters(), *module.buffers()]
        self.own = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self.storages: dict[int, int] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would make a reference cycle and leak the graph

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())

    def __enter__(self) -> "SavedBytes":
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)
