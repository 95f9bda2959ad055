"""Mixout."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from methods.mixout import Mix
from tests.conftest import random_tiny

COUNTS = {"vit_small_patch16_224": 21_665_664}
IDENTITY: dict[str, Any] | None = {}


def test_it_is_the_papers_formula() -> None:
    """``((1 - B) W + B W0 - q W0) / (1 - q)``, with the B that was drawn."""
    w0, w, q = torch.randn(30, 20), torch.randn(30, 20), 0.7
    mix = Mix(w0, q)
    with torch.no_grad():
        mix.delta.copy_(w - w0)
    torch.manual_seed(0)
    found = mix(w0)
    b = torch.isclose(found, w0, atol=1e-6).float()
    assert b.mean() == pytest.approx(q, abs=0.06)
    torch.testing.assert_close(found, ((1 - b) * w + b * w0 - q * w0) / (1 - q), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mix.eval()(w0), w)


def test_values_and_gradient_are_those_of_dropout() -> None:
    """In fp32 to the last bit, although only a byte of each entry is kept."""
    weight, g, q = torch.randn(30, 20), torch.randn(30, 20), 0.7
    mix = Mix(weight, q)
    torch.nn.init.normal_(mix.delta)
    found = []
    for mixed in (mix, lambda w: w + F.dropout(mix.delta, q)):
        torch.manual_seed(0)
        y = mixed(weight)
        (gradient,) = torch.autograd.grad(y, mix.delta, g)
        found.append((y, gradient))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_its_mean_is_the_trained_weight() -> None:
    mix = Mix(torch.randn(50), 0.5)
    torch.nn.init.normal_(mix.delta)
    with torch.no_grad():
        mean = torch.stack([mix(torch.zeros(50)) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, mix.delta.detach(), atol=0.2, rtol=0)


def test_without_mixing_it_is_full_fine_tuning(build: Any, data: Any, trainer: Any) -> None:
    merged = []
    for method, options in {"mixout": {"mixout_probability": 0.0}, "full": {}}.items():
        model = build(method, weight_decay=0.0, optimizer="sgd", **options)
        trainer(max_steps=3).fit(model, datamodule=data())
        merged.append(model.merge().state_dict())
    for name, tensor in merged[0].items():
        torch.testing.assert_close(tensor, merged[1][name], atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("probability", [-0.1, 1.0])
def test_bad_options_are_refused(probability: float) -> None:
    with pytest.raises(ValueError, match=f"mixout_probability={probability}: expected"):
        random_tiny("mixout", mixout_probability=probability)
