"""Eval mode for some passes of a network."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set a module to eval mode, and restore the mode of each of its children at the end.

    In eval mode no statistics of a BatchNorm change and dropout draws no random numbers.
    """
    training = [child for child in module.modules() if child.training]
    module.eval()
    try:
        yield
    finally:
        for child in training:
            child.training = True
