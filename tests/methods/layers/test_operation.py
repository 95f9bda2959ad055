"""Operations with a gradient of their own, and without gradients."""

from typing import Any

import torch
from torch import Tensor

from methods.layers.operation import Operation


class Double(Operation):
    """Twice the input, with ten times the gradient, so that a backward pass of its own shows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return 2 * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return 20 * g


def test_gradient_of_its_own() -> None:
    x = torch.ones(3, requires_grad=True)
    Double.apply(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [20.0] * 3


def test_plain_operations_without_gradients() -> None:
    with torch.no_grad():
        assert Double.apply(torch.ones(3)).tolist() == [2.0] * 3
        assert torch.vmap(Double.apply)(torch.ones(4, 3)).tolist() == [[2.0] * 3] * 4
