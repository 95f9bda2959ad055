"""Scores summed over batches."""

from functools import reduce
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from callbacks.measures import peak_bytes
from callbacks.scoring.scorers import AbsoluteGradients, GradientScorer, SignedGradients, SquaredGradients


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3))


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 6, generator=generator), torch.arange(n) % 3) for n in (4, 4, 2)]


@pytest.mark.parametrize(
    ("scorer", "naive"),
    [
        (SignedGradients, torch.add),
        (SquaredGradients, lambda total, g: torch.addcmul(total, g, g)),  # one rounding less than total + g * g
        (AbsoluteGradients, lambda total, g: total + g.abs()),
    ],
)
def test_streaming_equals_gradients_that_are_kept(scorer: type[GradientScorer], naive: Any) -> None:
    model = network()
    weight = model[0].weight
    gradients = []
    for x, y in batches():
        gradients.append(torch.autograd.grad(nn.functional.cross_entropy(model(x), y), weight)[0])
    with scorer(model, ["0.weight"]) as made:
        for x, y in batches():
            nn.functional.cross_entropy(model(x), y).backward()
            assert all(p.grad is None for p in model.parameters())  # dropped at once
    assert torch.equal(made.sums["0.weight"], reduce(naive, gradients, torch.zeros_like(weight)))


def test_memory_is_that_of_a_backward_pass_and_the_sums() -> None:
    """A gradient is dropped when it is added: the sums never stand beside all gradients and all activations."""
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(8)))
    x = torch.randn(64, 256)
    sums = sum(4 * p.numel() for p in model.parameters())

    def plain() -> None:
        model(x).square().mean().backward()
        model.zero_grad()

    def score() -> None:
        with SquaredGradients(model, [name for name, _ in model.named_parameters()]):
            model(x).square().mean().backward()

    assert sums < peak_bytes(score) <= sums + 0.5 * peak_bytes(plain)


def test_model_is_as_before() -> None:
    model = network()
    model[2].requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with SquaredGradients(model, ["2.weight", "0.bias"]) as scorer:
        assert [n for n, p in model.named_parameters() if p.requires_grad] == ["0.bias", "2.weight"]
        model(batches()[0][0]).sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["0.weight", "0.bias"]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    model(batches()[0][0]).sum().backward()  # no hook is left
    assert model[0].bias.grad is not None
    assert set(scorer.sums) == {"2.weight", "0.bias"}


def test_sums_are_fp32_under_bf16() -> None:
    model = network().bfloat16()
    with SquaredGradients(model, ["0.weight"]) as scorer:
        model(batches()[0][0].bfloat16()).float().sum().backward()
    assert scorer.sums["0.weight"].dtype is torch.float32


def test_bad_scores_are_named() -> None:
    model = network()
    with SquaredGradients(model, ["0.weight", "2.weight"]) as scorer:
        model(batches()[0][0]).sum().backward()
    scorer.check()
    scorer.sums["2.weight"][0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"the score of 2\.weight holds NaN"):
        scorer.check()
    for total in scorer.sums.values():
        total.zero_()
    with pytest.raises(ValueError, match=r"all scores are zero, first 0\.weight"):
        scorer.check()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["0.weight", "9.weight"], r"does not have: 9\.weight"),
        (["0.weight", "0.weight"], r"named twice: 0\.weight"),
        ([], "no score targets"),
    ],
)
def test_bad_targets_are_refused(targets: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SquaredGradients(network(), targets)


def test_packed_weights_are_refused() -> None:
    model = network()
    model[0].weight = nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="packed bytes"):
        SignedGradients(model, ["0.weight"])
