"""Bytes of tensors that are known beforehand."""

import gc
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from callbacks.measures import SavedBytes, peak_bytes

KB = torch.ones(16, 16).nbytes  # 1,024


def leaf() -> Tensor:
    return torch.rand(16, 16, requires_grad=True)


def test_every_storage_counts_once() -> None:
    x, y = leaf(), leaf()
    with SavedBytes(nn.Identity()) as saved:
        z = x * y  # keeps x and y
        assert saved.bytes == 2 * KB
        w = z.exp()  # keeps its own output
        assert saved.bytes == 3 * KB
        _ = w * w + x * w  # both are kept already
    assert saved.bytes == 3 * KB


def test_views_share_a_storage() -> None:
    x = leaf()
    with SavedBytes(nn.Identity()) as saved:
        y = x * 2.0
        _ = y.exp() + 1
        _ = y.t() * y.view(-1)[:16]
    assert saved.bytes == 2 * KB  # y, and its exponential


def test_parameters_and_buffers_do_not_count() -> None:
    linear, norm = nn.Linear(16, 16), nn.BatchNorm1d(16).eval()
    x = torch.rand(16, 16)
    with SavedBytes(nn.ModuleList([linear, norm])) as saved:
        linear(x)
    assert saved.bytes == KB  # the input alone, for the gradient of the weight
    linear.requires_grad_(False)
    with SavedBytes(linear) as saved:
        linear(x.clone().requires_grad_())
    assert saved.bytes == 0


def test_nothing_without_gradients() -> None:
    with SavedBytes(nn.Identity()) as saved, torch.no_grad():
        _ = leaf().exp() * leaf()
    assert saved.bytes == 0


def test_outside_the_block_nothing_counts() -> None:
    saved = SavedBytes(nn.Identity())
    with saved:
        pass
    _ = leaf() * leaf()
    assert saved.bytes == 0


def test_gradients_stay_and_nothing_leaks() -> None:
    class Graph(nn.Module):
        def forward(self, x: Tensor) -> Any:
            self.hidden = weakref.ref(y := x.exp())
            return (y * y).sum()

    module, x = Graph(), leaf()
    gc.disable()  # a cycle would only go away with the collector
    try:
        with SavedBytes(module):
            loss = module(x)
        del loss  # without a backward pass, which would free the graph in any case
        assert module.hidden() is None
    finally:
        gc.enable()
    with SavedBytes(module):
        module(x).backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * (2 * x).exp())


def test_peak_is_of_what_is_held_at_once() -> None:
    before = torch.zeros(1000)

    def work() -> None:
        first = torch.zeros(2000)
        del first
        second = before + 1
        third = torch.cat([second, second, second])
        del second, third

    assert peak_bytes(work) == 4 * (1000 + 3000)
