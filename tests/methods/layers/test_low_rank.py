"""Low-rank updates of linear layers against plain products and autograd."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.inject import swap_class
from callbacks.measures import SavedBytes
from methods.layers.low_rank import LowRank, Rows, merged_weight
from methods.layers.low_rank_layers import LoRALinear, merge_low_rank


def layer(rows: Rows | None, dropout: float = 0.0, dropout_at: Any = "hidden", rank: int = 2) -> Any:
    torch.manual_seed(0)
    linear: Any = nn.Linear(12, 18)
    linear.weight.requires_grad_(False)
    linear.lora = LowRank(linear, rank, 1.7, rows, dropout, dropout_at)
    nn.init.normal_(linear.lora.B)
    swap_class(linear, LoRALinear)
    return linear.double()


def by_autograd(linear: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What the layer means, from plain products."""
    lora = linear.lora
    h = F.linear(x, lora.A) if mask is None else F.linear(x, lora.A) * mask
    y = [F.linear(x, linear.weight, linear.bias)]
    for (first, last), part, b in zip(
        lora.rows, h.chunk(len(lora.rows), -1), lora.B.chunk(len(lora.rows)), strict=True
    ):
        y.append(F.pad(lora.scale * F.linear(part, b), (first, 18 - last)))
    return sum(y[1:], y[0])


@pytest.mark.parametrize("rows", [None, ((0, 6), (12, 18)), ((6, 12),)], ids=["whole", "q and v", "k"])
@pytest.mark.parametrize("shape", [(5, 12), (2, 5, 12), (2, 3, 4, 12)], ids=str)
@pytest.mark.parametrize("rank", [2, 15], ids="rank {}".format)  # 15 is more than each block of rows can have
def test_functions_against_autograd(rows: Rows | None, shape: tuple[int, ...], rank: int) -> None:
    """Both training forms: W + s B A in one product, and the update added to the layer's output under dropout."""
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    for dropout in (0.0, 0.4):
        linear = layer(rows, dropout, rank=rank)
        torch.manual_seed(7)
        y = linear(x)
        mask = None
        if dropout:
            torch.manual_seed(7)
            mask = F.dropout(y.new_ones(linear.lora.A.shape[0], x.numel() // 12), dropout).T.view(*shape[:-1], -1)
        torch.testing.assert_close(y, by_autograd(linear, x, mask))
        inputs = [x, linear.bias, linear.lora.A, linear.lora.B]
        g = torch.randn_like(y)
        found = torch.autograd.grad(y, inputs, g)
        expected = torch.autograd.grad(by_autograd(linear, x, mask), inputs, g)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_input_dropout_drops_what_a_sees() -> None:
    linear = layer(None, 0.5, "input")
    x = torch.randn(4, 12, dtype=torch.float64)
    torch.manual_seed(7)
    y = linear(x)
    torch.manual_seed(7)
    seen = F.dropout(x, 0.5)
    expected = F.linear(x, linear.weight, linear.bias) + 1.7 * F.linear(F.linear(seen, linear.lora.A), linear.lora.B)
    torch.testing.assert_close(y, expected)
    assert torch.equal(linear.eval()(x), linear(x))


def test_a_weight_that_trains_too_gets_its_gradient() -> None:
    linear = layer(None)
    linear.weight.requires_grad_(True)
    x = torch.randn(4, 12, dtype=torch.float64)
    linear(x).square().sum().backward()
    found = linear.weight.grad
    (expected,) = torch.autograd.grad(by_autograd(linear, x).square().sum(), [linear.weight])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_autocast_keeps_the_input_in_bf16(dropout: float) -> None:
    linear = layer(((0, 6), (12, 18)), dropout).float()
    x = torch.randn(64, 12, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), SavedBytes(linear) as saved:
        y = linear(x)
    assert y.dtype is torch.bfloat16
    # the input; with dropout its mask (4, 64), and the weight as autocast itself keeps it for every layer
    assert saved.bytes == 2 * x.numel() + (2 * 4 * 64 + 2 * linear.weight.numel() if dropout else 0)
    y.float().square().sum().backward()
    assert linear.lora.A.grad.dtype is linear.lora.B.grad.dtype is x.grad.dtype is torch.float32
    if dropout:
        return
    other = copy.deepcopy(linear)
    other.zero_grad()
    by_autograd(other, x.detach()).square().sum().backward()
    for name in ("A", "B"):
        found, expected = getattr(linear.lora, name).grad, getattr(other.lora, name).grad
        assert (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("rows", [None, ((0, 6), (12, 18))], ids=["whole", "q and v"])
def test_merged_layer_is_plain_and_gives_the_same(rows: Rows | None) -> None:
    linear = layer(rows)
    model, x = nn.Sequential(linear), torch.randn(5, 12, dtype=torch.float64)
    with torch.no_grad():
        expected = by_autograd(linear, x)
        merge_low_rank(model)
        torch.testing.assert_close(model(x), expected)
    assert type(linear) is nn.Linear
    assert set(model.state_dict()) == {"0.weight", "0.bias"}


def test_update_has_the_rank_and_the_rows() -> None:
    """The frozen weight stays as it is, also where it is stored in bf16: the sum is made in the precision of A."""
    torch.manual_seed(0)
    weight, A, B = torch.randn(18, 12), torch.randn(4, 12), torch.randn(12, 2)
    before = weight.clone()
    update = merged_weight(weight, A, B, ((0, 6), (12, 18)), 1.5) - weight
    assert torch.equal(weight, before)
    assert not update[6:12].any()
    for rows, a, b in ((slice(6), A[:2], B[:6]), (slice(12, 18), A[2:], B[6:])):
        torch.testing.assert_close(update[rows], 1.5 * b @ a, atol=1e-5, rtol=1e-5)
        assert torch.linalg.matrix_rank(update[rows], rtol=1e-5) == 2
    assert merged_weight(weight.bfloat16(), A, B, ((0, 6), (12, 18)), 1.5).dtype is torch.float32


def test_a_new_update_is_zero() -> None:
    """And A has the distribution of a new linear layer, so that the first gradient of B is not zero."""
    torch.manual_seed(0)
    low_rank = LowRank(nn.Linear(400, 30), 8)
    assert not low_rank.B.any()
    assert float(low_rank.A.detach().abs().max()) <= 400**-0.5
    assert float(low_rank.A.detach().std()) == pytest.approx((3 * 400) ** -0.5, rel=0.05)
