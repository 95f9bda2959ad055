"""Tensors that a compiled graph holds as constants."""

import torch
from torch import Tensor

from methods.layers.constants import computed_once
from tests.support.compiling import Graphs, compiled

calls: list[int] = []


@computed_once
def squares(count: int, device: torch.device) -> Tensor:
    """Squares (count,)."""
    calls.append(count)
    values = torch.arange(count, device=device, dtype=torch.float32)
    for _ in range(50):
        values = values + 1 - 1
    return values.square()


def scaled(x: Tensor) -> Tensor:
    return x * squares(3, x.device) + squares(3, x.device)


def test_made_once_and_a_constant_of_the_graph() -> None:
    calls.clear()
    graphs, x = Graphs(), torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    found = compiled(scaled, graphs)(x)
    assert found.tolist() == scaled(x).tolist() == [0, 3, 16]
    assert calls == [3]
    assert (len(graphs), graphs.operations) == (1, 2)
    assert squares.__doc__ == "Squares (count,)."


def test_also_for_training_if_an_evaluation_made_it() -> None:
    with torch.inference_mode():
        squares(4, torch.device("cpu"))
    x = torch.ones(4, requires_grad=True)
    (x * squares(4, x.device)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 4, 9]
