"""Tensors that depend on plain values alone, such as the levels of a quantiser."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def computed_once(make: Callable[..., T]) -> Callable[..., T]:
    """Keep the result of a function for each combination of its arguments.

    A compiled graph contains the result as a constant. With ``functools.cache`` alone, it would contain the operations
    of the function, once for each call.

    Args:
        make: A function whose result depends on its arguments alone, such as a size and a device.
    """
    kept = cache(make)

    @wraps(make)
    def constant(*args: Any) -> T:
        with torch.inference_mode(False):  # because the result must also serve a training step
            return kept(*args)

    return torch.compiler.assume_constant_result(constant)
