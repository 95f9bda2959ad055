"""Functions with a gradient of their own."""

from typing import Any

import torch


class NoContext:
    """Context of a forward pass whose gradient nobody asks for: it keeps nothing."""

    def save_for_backward(self, *tensors: Any) -> None:
        """Nothing, because there is no backward pass."""

    def mark_dirty(self, *tensors: Any) -> None:
        """Nothing, because autograd does not look."""


class Operation(torch.autograd.Function):
    """Function with a gradient of its own; without gradients its forward pass runs as plain torch operations.

    So ``torch.vmap`` can run it for several adapters at once, and exporters find the operations inside.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Output of ``forward`` for its arguments without the context."""
        return super().apply(*args) if torch.is_grad_enabled() else cls.forward(NoContext(), *args)
