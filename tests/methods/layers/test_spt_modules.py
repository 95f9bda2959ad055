"""SPT's modules beside a layer, against plain products."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.inject import attach
from methods.layers.spt_modules import Adapters, Blocks, ParallelLoRA, TokenDtype

QV: Blocks = {"q": (0, 6), "v": (12, 18)}
PROJ: Blocks = {"proj": (0, 18)}


def attached(kind: Any, blocks: Blocks, dropout: float = 0.0, drop_path: float = 0.0) -> tuple[Any, Any]:
    """A linear layer of 12 to 18 channels and the module on it, whose weights are moved away from their start."""
    torch.manual_seed(0)
    linear = nn.Linear(12, 18).double()
    op = kind(linear, blocks, 2, dropout, drop_path).double()
    attach(linear, "spt", op)
    for parameter in op.parameters():
        nn.init.normal_(parameter)
    return linear, op


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("kind", [ParallelLoRA, Adapters])
@pytest.mark.parametrize("blocks", [QV, PROJ], ids=["q and v", "proj"])
def test_a_new_module_changes_nothing(kind: Any, blocks: Blocks, x: Tensor) -> None:
    linear = nn.Linear(12, 18).double()
    expected = linear(x)
    op = kind(linear, blocks, 2, 0.5, 0.5).double()
    attach(linear, "spt", op)
    assert torch.equal(linear(x), expected)
    op.reset()
    assert not torch.allclose(linear.eval()(x), expected), "the published start is not the identity"


def test_low_rank_update_of_blocks(x: Tensor) -> None:
    linear, op = attached(ParallelLoRA, QV)
    expected = F.linear(x, linear.weight, linear.bias)
    for (first, last), a, b in zip(QV.values(), op.A.chunk(2), op.B.chunk(2), strict=True):
        expected[..., first:last] += x @ a.T @ b.T
    torch.testing.assert_close(linear(x), expected)


def test_adapters_of_blocks_read_their_own_output(x: Tensor) -> None:
    linear, op = attached(Adapters, QV)
    y = F.linear(x, linear.weight, linear.bias)
    q, k, v = y.chunk(3, dim=-1)
    expected = torch.cat([q + op.blocks["q"](q), k, v + op.blocks["v"](v)], dim=-1)
    torch.testing.assert_close(linear(x), expected)


def test_adapter_on_proj_reads_the_input(x: Tensor) -> None:
    linear, op = attached(Adapters, PROJ)
    torch.testing.assert_close(linear(x), F.linear(x, linear.weight, linear.bias) + op.blocks["proj"](x))


@pytest.mark.parametrize("kind", [ParallelLoRA, Adapters])
def test_drop_path_leaves_out_whole_samples(kind: Any, x: Tensor) -> None:
    """A sample gets no update or the update divided by the share of samples that get one."""
    linear, _ = attached(kind, PROJ, drop_path=0.5)
    plain = F.linear(x, linear.weight, linear.bias)
    update = linear.eval()(x) - plain
    linear.train()
    seen = set()
    for _ in range(8):
        found = linear(x) - plain
        for sample, whole in zip(found, update, strict=True):
            kept = bool(sample.any())
            seen.add(kept)
            torch.testing.assert_close(sample, 2 * whole * kept)
    assert seen == {True, False}


def test_dropout_is_off_on_proj() -> None:
    assert attached(ParallelLoRA, PROJ, dropout=0.3)[1].dropout == 0
    assert attached(ParallelLoRA, QV, dropout=0.3)[1].dropout == 0.3


def test_tokens_follow_the_frozen_weights() -> None:
    layer, op = nn.Identity(), TokenDtype()
    attach(layer, "dtype", op)
    assert layer(torch.ones(2)).dtype is torch.float32
    layer.to(torch.bfloat16)
    assert layer(torch.ones(2)).dtype is torch.bfloat16
    assert not layer.state_dict(), "nothing to save"
