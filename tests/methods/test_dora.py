"""DoRA."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.inject import swap_class
from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod, compose
from methods.dora import Decomposed, DoRALinear
from methods.layers.divisors import SMALLEST
from methods.layers.low_rank import Rows
from tests.methods.test_lora import check_fused
from tests.support.golden import Golden

COUNTS = {"vit_base_patch16_224": 294_912 + 12 * 2 * 768}
IDENTITY: dict[str, Any] | None = {"lora_targets": ["qkv", "proj", "fc1", "fc2"]}
Build = Callable[..., PEFTMethod]


def check_dora(golden: Golden) -> None:
    check_fused(golden, "dora")


GOLDEN = {"dora": check_dora}


@pytest.mark.parametrize(("rank", "lora"), [(4, 589_824), (8, 1_179_648)])
@pytest.mark.usefixtures("on_meta")
def test_counts_on_all_four(rank: int, lora: int) -> None:
    model = compose(METHODS["dora"], task=Classification)(
        backbone="vit_base_patch16_224",
        pretrained=False,
        num_classes=100,
        lora_targets=["qkv", "proj", "fc1", "fc2"],
        lora_rank=rank,
    )
    model.configure_model()
    assert model.parameter_counts()["method"] == lora + 82_944


def layer(rows: Rows | None, *, bias: bool = True, dropout: float = 0.0, dropout_at: str = "hidden") -> Any:
    torch.manual_seed(0)
    linear: Any = nn.Linear(12, 18, bias=bias)
    linear.weight.requires_grad_(False)
    linear.lora = Decomposed(linear, 2, 1.7, rows, dropout, dropout_at)
    nn.init.normal_(linear.lora.B)
    nn.init.normal_(linear.lora.magnitude, 1.0, 0.3)
    swap_class(linear, DoRALinear)
    return linear.double()


def by_autograd(linear: Any, x: Tensor, seen: Tensor | None = None) -> Tensor:
    """``W x + b + (m / n - 1) W x' + (m / n) s B A x'`` with constant norms n, row block by row block."""
    lora, seen = linear.lora, x if seen is None else seen
    k = len(lora.rows)
    y = F.linear(x, linear.weight, linear.bias)
    for (first, last), a, b, m in zip(
        lora.rows, lora.A.chunk(k), lora.B.chunk(k), lora.magnitude.chunk(k), strict=True
    ):
        ratio = m / (linear.weight[first:last] + lora.scale * b @ a).norm(dim=1).detach()
        update = (ratio - 1) * F.linear(seen, linear.weight[first:last])
        update = update + ratio * lora.scale * F.linear(F.linear(seen, a), b)
        y = y + F.pad(update, (first, 18 - last))
    return y


@pytest.mark.parametrize("rows", [None, ((0, 6), (12, 18))], ids=["whole", "q and v"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("small", [False, True])
def test_functions_against_autograd(rows: Rows | None, bias: bool, small: bool) -> None:
    """Gradients come from the layer's own output, or from single products where a magnitude is near zero."""
    linear = layer(rows, bias=bias)
    if small:
        linear.lora.magnitude.data[3] = SMALLEST / 10
    assert linear.lora.divisible is not small
    x = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    inputs = [x, linear.lora.A, linear.lora.B, linear.lora.magnitude] + ([linear.bias] if bias else [])
    y = linear(x)
    torch.testing.assert_close(y, by_autograd(linear, x))
    g = torch.randn_like(y)
    found = torch.autograd.grad(y, inputs, g)
    expected = torch.autograd.grad(by_autograd(linear, x), inputs, g)
    for one, other in zip(found, expected, strict=True):
        # the sums over y are taken in single precision
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_bf16_gradients_are_near_those_of_fp32() -> None:
    linear, other = layer(((0, 6), (12, 18))).float(), layer(((0, 6), (12, 18))).float()
    x = torch.randn(256, 12)
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(x)
    g = torch.randn_like(y)
    y.backward(g)
    by_autograd(other, x).backward(g.float())
    for name in ("A", "B", "magnitude"):
        found, expected = linear.lora.get_parameter(name).grad, other.lora.get_parameter(name).grad
        assert found.dtype is torch.float32
        assert (found - expected).norm() < 0.02 * expected.norm(), name


def test_dropout_is_on_what_the_update_sees() -> None:
    linear = layer(((0, 6), (12, 18)), dropout=0.5, dropout_at="input")
    x = torch.randn(4, 12, dtype=torch.float64)
    torch.manual_seed(7)
    y = linear(x)
    torch.manual_seed(7)
    torch.testing.assert_close(y, by_autograd(linear, x, F.dropout(x, 0.5)))
    hidden = layer(None, dropout=0.5)
    assert not torch.allclose(hidden(x), hidden(x))
    torch.testing.assert_close(hidden.eval()(x), by_autograd(hidden, x))


def test_a_row_of_zeros_stays_one() -> None:
    linear = layer(None)
    linear.weight.data[2] = 0
    linear.lora.B.data[2] = 0
    linear.lora.reset(linear.weight)
    y = linear(torch.randn(3, 12, dtype=torch.float64))
    assert torch.equal(y[:, 2], linear.bias[2].expand(3))
    y.sum().backward()
    assert linear.lora.magnitude.grad.isfinite().all()


def test_look_at_the_magnitudes(build: Build) -> None:
    model = build("dora")
    model.configure_model()
    updates = [module for module in model.modules() if isinstance(module, Decomposed)]
    model.on_train_batch_start(None, 0)
    assert [update.divisible_in_step for update in updates] == [True] * len(updates)
    model.on_train_batch_end(None, None, 0)
    updates[0].magnitude.data[0] = 0.0
    model.on_train_batch_start(None, 0)
    assert [update.divisible for update in updates] == [False, *[True] * (len(updates) - 1)]
