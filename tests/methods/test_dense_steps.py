"""Segmentation under torch.compile, and with activations that are computed again: equal losses and gradients."""

from typing import Any

import pytest
import torch

from callbacks.measures import SavedBytes
from commands.methods.cell import select
from tests.conftest import perturb
from tests.methods.test_dense_contract import batch, build
from tests.support.compiling import Graphs, compiled

METHODS = ["lora", "ssf", "hst", "dyt"]
LINEAR: dict[str, Any] = {"head": "linear", "head_channels": None}  # UperNet takes seconds to trace
GRAPHS = {"dyt": 2}  # the pass of its teacher is another graph


def ready(method: str, **options: Any) -> Any:
    """A method in training whose trained values have moved."""
    model: Any = build(method, **options)
    model.adapt_before_data()
    select(model, batch())
    perturb(model)
    return model.train()


def step(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Loss, gradients and kept bytes of a step."""
    model.zero_grad()
    torch.manual_seed(5)
    with SavedBytes(model) as saved:
        loss = model.loss(batch())
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, saved.bytes


@pytest.mark.parametrize(
    ("method", "options"),
    [("lora", LINEAR), *(pytest.param(name, {}, marks=pytest.mark.matrix) for name in METHODS)],
)
def test_compiled(method: str, options: dict[str, Any]) -> None:
    """One graph without breaks for a backbone, a neck and heads; a second step makes no other."""
    model, graphs = ready(method, **options), Graphs()
    loss, plain, _ = step(model)
    model.forward = compiled(model.forward, graphs)
    compiled_loss, gradients, _ = step(model)
    torch.testing.assert_close(compiled_loss, loss)
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    for name, gradient in plain.items():
        scale = max(float(gradient.abs().max()), 0.01 * largest)  # some are zero but for rounding
        # a BatchNorm over two pooled values magnifies rounding
        assert float((gradients[name] - gradient).abs().max()) <= 1e-3 * scale, name
    step(model)
    assert len(graphs) == GRAPHS.get(method, 1)


@pytest.mark.parametrize("method", METHODS)
def test_computed_again(method: str) -> None:
    """Gradients are equal, and a step keeps fewer bytes."""
    model = ready(method)
    loss, plain, before = step(model)
    model.recompute(True)
    again, gradients, after = step(model)
    assert torch.equal(again, loss)
    assert plain.keys() == gradients.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    assert after < before
