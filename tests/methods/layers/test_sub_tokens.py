"""Sub-token compression: which gradients are exact, which are approximate, and what is kept."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.inject import swap_class
from callbacks.measures import SavedBytes
from methods.layers.low_rank import AddedLowRank, MergedLowRank
from methods.layers.sub_tokens import (
    CompressedAddedLowRank,
    CompressedMergedLowRank,
    CompressedScaleShift,
    Direction,
    project,
    spread,
    sub_tokens,
    unit,
)
from methods.velora import VeLoRALinear


def layer(size: int = 4, s: float = 1.0, bias: bool = True, width: int = 24) -> Any:
    """A linear layer that compresses, in double precision, and v drawn."""
    torch.manual_seed(0)
    linear: Any = nn.Linear(width, 7, bias)
    linear.velora = Direction(size, s, "random", 0.9)
    swap_class(linear, VeLoRALinear)
    linear = linear.double()
    linear.velora.v = unit(linear.velora.v.double())  # no cast touches v
    return linear


def gradients(linear: Any, x: Tensor, g: Tensor) -> list[Tensor]:
    inputs = [x, linear.weight] + ([] if linear.bias is None else [linear.bias])
    return list(torch.autograd.grad(linear(x), inputs, g))


@pytest.mark.parametrize("shape", [(5, 24), (2, 5, 24), (2, 3, 4, 24)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("contiguous", [True, False])
def test_only_the_weight_gradient_is_approximate(shape: tuple[int, ...], bias: bool, contiguous: bool) -> None:
    """By plain autograd of a layer whose weight sees x^; the rest is what nn.Linear gives, whatever s is."""
    linear = layer(s=0.7, bias=bias)
    x = torch.randn(shape, dtype=torch.float64)
    x = (x if contiguous else x.transpose(0, 1).contiguous().transpose(0, 1)).requires_grad_()
    plain = F.linear(x, linear.weight, linear.bias)
    assert torch.equal(linear(x), plain)
    g = torch.randn_like(plain)
    found = gradients(linear, x, g)
    inputs = [x, linear.weight] + ([linear.bias] if bias else [])
    exact = torch.autograd.grad(plain, inputs, g)
    for one, other in zip([found[0], *found[2:]], [exact[0], *exact[2:]], strict=True):
        torch.testing.assert_close(one, other)
    v = linear.velora.v
    coarse = torch.cat([(part @ v)[..., None] * v for part in x.detach().split(4, dim=-1)], dim=-1)
    expected = torch.einsum("...o,...c->oc", g, coarse)
    torch.testing.assert_close(found[1], 0.7 * expected, atol=1e-6, rtol=1e-6)
    assert torch.linalg.matrix_rank(found[1].reshape(-1, 4), rtol=1e-6) == 1
    assert (found[1] - exact[1]).norm() > 0.1 * exact[1].norm()


def test_sub_tokens_of_one_channel_are_exact() -> None:
    linear = layer(size=1)
    x = torch.randn(5, 24, dtype=torch.float64, requires_grad=True)
    g = torch.randn(5, 7, dtype=torch.float64)
    torch.testing.assert_close(gradients(linear, x, g)[1], g.T @ x)


def test_sub_tokens_along_v_are_exact() -> None:
    linear = layer()
    v = linear.velora.v
    x = (torch.randn(5, 6, 1, dtype=torch.float64) * v).flatten(1).detach().requires_grad_()
    g = torch.randn(5, 7, dtype=torch.float64)
    torch.testing.assert_close(gradients(linear, x, g)[1], g.T @ x, atol=1e-6, rtol=1e-6)


def test_the_last_group_may_be_padded() -> None:
    linear = layer(size=5)  # 24 channels: the fifth group has 4
    x = torch.randn(3, 24, dtype=torch.float64)
    v, g = linear.velora.v, torch.randn(3, 7, dtype=torch.float64)
    parts = F.pad(x, (0, 1)).split(5, dim=-1)
    coarse = torch.cat([(part @ v)[..., None] * v for part in parts], dim=-1)[:, :24]
    found = gradients(linear, x.clone().requires_grad_(), g)[1]
    torch.testing.assert_close(found, g.T @ coarse, atol=1e-6, rtol=1e-6)


def test_padded_scale_shift() -> None:
    x, g, v = torch.randn(3, 24), torch.randn(3, 24), unit(torch.rand(5))
    scale, shift = torch.randn(24, requires_grad=True), torch.randn(24, requires_grad=True)
    CompressedScaleShift.apply(x + 0, scale, shift, v, 0.5).backward(g)
    coarse = torch.cat([(part @ v)[..., None] * v for part in F.pad(x, (0, 1)).split(5, dim=-1)], dim=-1)[:, :24]
    torch.testing.assert_close(scale.grad, 0.5 * (g * coarse).sum(0))
    torch.testing.assert_close(shift.grad, g.sum(0))


def test_exactly_z_is_kept() -> None:
    linear = layer(size=4).float()
    x = torch.randn(10, 24, requires_grad=True)
    with SavedBytes(linear) as saved:
        y = linear(x)
    assert saved.bytes == 10 * 6 * 4
    assert y.requires_grad


def test_directions() -> None:
    x = torch.randn(8, 50, 12) + torch.arange(4.0).repeat(3)
    tokens = x.reshape(-1, 4)
    mean = Direction(4, 1.0, "batch_average_once", 0.9)
    torch.testing.assert_close(mean(x), F.normalize(tokens.mean(0), dim=0))
    before = mean.v.clone()
    assert torch.equal(mean(x - 5), before)  # never again
    first = torch.linalg.svd(tokens, full_matrices=False)[2][0]
    torch.testing.assert_close(Direction(4, 1.0, "svd", 0.9)(x), first * first.sum().sign(), atol=1e-4, rtol=1e-4)
    assert Direction(4, 1.0, "random", 0.9).v.norm() == pytest.approx(1)
    torch.testing.assert_close(unit(torch.zeros(4)), torch.full((4,), 0.5))


def test_projection_on_v() -> None:
    """``spread(project(x))`` is the projection of every sub-token on v: doing it twice changes nothing."""
    torch.manual_seed(0)
    x, v = torch.randn(2, 5, 24), unit(torch.randn(4))
    z = project(x, v)
    assert z.shape == (10, 6)
    coarse = spread(z, v, 24)
    torch.testing.assert_close(project(coarse, v), z)
    assert (x.flatten(0, 1) - coarse).norm() < x.norm()
    residual = sub_tokens(x.flatten(0, 1) - coarse, 4)
    torch.testing.assert_close(residual @ v, torch.zeros(60), atol=1e-5, rtol=0)
    assert sub_tokens(torch.ones(3, 10), 4).shape == (9, 4), "the last sub-token of a token is filled with zeros"


ROWS = ((0, 6), (12, 18))


@pytest.mark.parametrize("dropout", [False, True])
def test_low_rank_updates_with_sub_tokens_of_one_channel_are_exact(dropout: bool) -> None:
    """Then z is x itself, so that every gradient is the one of the functions that keep x."""
    torch.manual_seed(0)
    x = torch.randn(10, 12, dtype=torch.float64, requires_grad=True)
    A, B = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((4, 12), (12, 2)))
    weight, v = torch.randn(18, 12, dtype=torch.float64, requires_grad=True), torch.ones(1)
    mask = F.dropout(torch.ones(4, 10, dtype=torch.float64), 0.4) if dropout else None

    def outputs(compressed: bool) -> Tensor:
        if dropout:
            y = F.linear(x, weight)
            if compressed:
                return CompressedAddedLowRank.apply(y, x, A, B, mask, v, 1.0, ROWS, 0.5)
            return AddedLowRank.apply(y, x, A, B, mask, ROWS, 0.5)
        if compressed:
            return CompressedMergedLowRank.apply(x, weight, None, A, B, v, 1.0, ROWS, 0.5)
        return MergedLowRank.apply(x, weight, None, A, B, ROWS, 0.5)

    exact, found = outputs(compressed=False), outputs(compressed=True)
    assert torch.equal(found, exact)
    g = torch.randn_like(exact)
    for one, other in zip(
        torch.autograd.grad(found, [x, weight, A, B], g), torch.autograd.grad(exact, [x, weight, A, B], g), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)  # z is spread in fp32
