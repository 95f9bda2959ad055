"""Contexts that leave a model unchanged."""

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn


def eagerly() -> AbstractContextManager[Any]:
    """Context without torch.compile, for a forward pass that is run once, or with other hooks than the steps."""
    return torch.compiler.set_stance("force_eager")


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Restore random states, modes and flags at the end, so that a fit does not depend on the scoring before it.

    Raises:
        RuntimeError: If a weight or buffer has changed, or has a gradient.
    """
    module.zero_grad()  # otherwise an old gradient would be scored
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    sums = {name: checksum(tensor) for name, tensor in tensors.items()}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    modes = [(m, m.training) for m in module.modules()]
    flags = [(p, p.requires_grad) for p in module.parameters()]
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        for m, training in modes:
            m.training = training
        for p, required in flags:
            p.requires_grad_(required)
    for name, tensor in tensors.items():
        if tensor.grad is not None or checksum(tensor) != sums[name]:
            raise RuntimeError(f"scoring must leave the model as it was, but {name} has a gradient or another value")


def checksum(tensor: Tensor) -> int:
    """Sum of the bit patterns of a tensor; it takes some hundredths of a second for 100 million parameters."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if not tensor.numel():
        return 0
    return int(tensor.detach().contiguous().view(integers[tensor.element_size()]).sum(dtype=torch.int64))
