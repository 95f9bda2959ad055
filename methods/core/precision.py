"""Which tensors keep fp32, and which statistics move."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

BATCH_NORM = nn.modules.batchnorm._BatchNorm


def kept_in_fp32(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of one module that no cast touches: what trains, and its partners in a norm's affine map."""
    parameters = list(module.parameters(recurse=False))
    trained = [p for p in parameters if p.requires_grad]
    return parameters if trained and all(p.dim() <= 1 for p in parameters) else trained


def updates_statistics(module: nn.Module) -> bool:
    """Whether a BatchNorm of the backbone trains in full, so that its statistics move too."""
    parameters = list(module.parameters(recurse=False))
    is_batch_norm = isinstance(module, BATCH_NORM)
    return is_batch_norm and bool(parameters) and all(p.requires_grad for p in parameters)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)
